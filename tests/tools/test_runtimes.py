"""The table of runtimes: whatever a release does with a file becomes a row. Of the table itself the oldest ONNX Runtime
and the installed one are run here, on the forms that are made for it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import ribsr  # noqa: E402
from engines import open_engine, samples  # noqa: E402
from export import Form  # noqa: E402
from export.convert import Options, export_onnx  # noqa: E402
from ribsr.base.sizes import Size  # noqa: E402
from tools import runtimes  # noqa: E402
from tools.runtimes import Given, Runtime, Unavailable, cells, install, run, with_ratios  # noqa: E402

FORMS: tuple[Form, ...] = ("canonical", "mha")
LIMIT = 120
"""Seconds, on a machine with other work."""

OLDEST, NEWEST = (next(r for r in runtimes.RUNTIMES if r.name == f"ONNX Runtime {v}") for v in ("1.16.3", "1.32.0"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Given, dict[Form, Path]]:
    """A small model in each form, a picture no side of which is a multiple of a window, and what comes of it."""
    folder = tmp_path_factory.mktemp("forms")
    small = replace(ribsr.config("sst-light"), name="small", blocks=1, windows=(8, 16), heads=(3, 3), ranks=(16, 24))
    ribsr.save(ribsr.build(small), folder / "x2.pt")
    paths: dict[Form, Path] = {form: folder / f"x2.{form}.onnx" for form in FORMS}
    for form, path in paths.items():
        export_onnx(folder / "x2.pt", path, Options(form=form, verify=False))
    x = samples.sample("coffee", Size(37, 21))
    with open_engine(folder / "x2.pt", device="cpu") as engine:
        return Given(x, engine.run(x)), paths


@pytest.fixture(scope="module")
def oldest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return install(OLDEST, tmp_path_factory.mktemp("oldest"))
    except Unavailable as error:
        pytest.skip(f"{OLDEST.name}: {error}")


@pytest.mark.parametrize("sizes", ["dynamic", "fixed"])
@pytest.mark.parametrize("form", FORMS)
def test_the_oldest_onnx_runtime_is_right(
    files: tuple[Given, dict[Form, Path]], oldest: Path, form: Form, sizes: str
) -> None:
    given, paths = files
    row = run(OLDEST, oldest, paths[form], given, sizes, LIMIT)
    assert row.failure is None
    assert row.error is not None
    assert row.error < 1e-5


@pytest.mark.parametrize("sizes", ["dynamic", "fixed"])
@pytest.mark.parametrize("form", FORMS)
def test_the_installed_onnx_runtime_is_right(files: tuple[Given, dict[Form, Path]], form: Form, sizes: str) -> None:
    given, paths = files
    row = run(NEWEST, Path(sys.executable), paths[form], given, sizes, LIMIT)
    assert row.failure is None
    assert row.error is not None
    assert row.error < 1e-5
    assert row.milliseconds


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script plays Python's part")
@pytest.mark.parametrize(
    ("script", "failure"),
    [
        ("kill -SEGV $$", "crashed (SIGSEGV)"),
        ("sleep 60", "no answer in 1 s"),
        (
            'printf "%s\\n" "Traceback (most recent call last):" "  File" "OSError: cannot read" "it: why" >&2; exit 1',
            "refused: OSError: cannot read it: why",
        ),
        ("exit 3", "refused: "),
    ],
)
def test_whatever_a_runtime_does_is_a_row(tmp_path: Path, script: str, failure: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    given = Given(np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 3, 4, 4), np.float32))
    row = run(NEWEST, python, tmp_path / "x2.onnx", given, "dynamic", 1)
    assert (row.runtime, row.model, row.error) == (NEWEST.name, "x2.onnx", None)
    assert failure in str(row.failure)
    assert row.failure in cells(row)


def test_a_file_that_is_none_is_refused_in_the_runtime_s_words(tmp_path: Path) -> None:
    (tmp_path / "x2.onnx").write_bytes(b"no model")
    given = Given(np.zeros((1, 3, 2, 2), np.float32), np.zeros((1, 3, 4, 4), np.float32))
    row = run(NEWEST, Path(sys.executable), tmp_path / "x2.onnx", given, "dynamic", LIMIT)
    assert str(row.failure).startswith("refused: ")
    assert "x2.onnx" in str(row.failure)


def test_what_cannot_be_installed_says_why_and_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"needs python9\.9, which is not on PATH"):
        install(replace(NEWEST, python="python9.9"), tmp_path / "a")
    for _ in range(2):
        with pytest.raises(Unavailable, match="not installed: .*nowhere"):
            install(replace(NEWEST, packages=(str(tmp_path / "nowhere"),)), tmp_path / "b")


def test_times_are_ratios_to_the_first_that_there_is() -> None:
    row = runtimes.Row("a", "x2.onnx", "fixed")
    rows = with_ratios([replace(row, failure="crashed"), *(replace(row, milliseconds=ms) for ms in (200.0, 50.0))])
    assert [one.ratio for one in rows] == [None, 1.0, 0.25]


def test_the_command_goes_on_after_a_runtime_that_is_not_to_be_had(
    files: tuple[Given, dict[Form, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, paths = files
    missing = Runtime("Missing 1.0", "ONNX Runtime", ("a",), python="python9.9")
    monkeypatch.setattr(runtimes, "RUNTIMES", (missing, replace(missing, name="Missing 2.0"), NEWEST))
    path = str(paths["mha"])
    ran = CliRunner().invoke(runtimes.main, [path, path, "--only", "Missing", "--json", str(tmp_path / "rows.json")])
    assert ran.exit_code == 0, ran.output
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["runtime"], row["error"]) for row in rows] == [("Missing 1.0", None), ("Missing 2.0", None)]
    assert all("needs python9.9" in row["failure"] for row in rows)
    ran = CliRunner().invoke(runtimes.main, [path, path, "--only", "Nothing"])
    assert ran.exit_code != 0
    assert "Missing 1.0, Missing 2.0, ONNX Runtime" in ran.output
