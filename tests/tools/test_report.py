"""tools/report.py as a user types it; tests/tools/test_report_in_browser.py looks at the page."""

from __future__ import annotations

import copy
import json
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from tests.tools import runs
from tools._page import FOLDER
from tools._report_pictures import compare, error_of, palette
from tools._runs import short_names
from tools.report import main

pytest.importorskip("vl_convert", reason="vl-convert-python is not installed; the extra report brings it")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def made(*values: dict[str, Any]) -> str:
    """The page of such runs."""
    files = [runs.write(Path(f"run{i}.json"), value) for i, value in enumerate(values)]
    result = run(*files)
    assert result.exit_code == 0, result.output
    return Path("report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What of a page could act: elements with their attributes, and the text that is shown."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self._inside = ""
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style" and data.strip():
            self.shown.append(data.strip())


def test_all_figures_stand_there_as_text(here: Path) -> None:
    failed = runs.compared("x2.fp16.onnx", failure="rmse 0.0041 is above 0.002", passed=False, psnr=47.23)
    timed = runs.latency(
        runs.timing("a.pt", 3179.0), runs.timing("a.onnx", 13.37), runs.timing("b", 1.0, failure="gone")
    )
    shown = Page(made(runs.parity(runs.compared("x2.onnx"), failed), timed, runs.evaluation(here))).shown
    for figure in (
        *("1 of 2", "4.2e-7", "148.0", "47.2", "FAIL", "rmse 0.0041 is above 0.002"),
        *("3,179.0 ms", "13.4 ms", "0.004", "failed: gone", "237.8 ×", "74.8"),
        *("+2.90 dB", "32.20 dB", "35.10 dB", "SSIM 0.9300"),
    ):
        assert any(figure in text for text in shown), figure


HOSTILE = '<script>alert("1")</script>"><img src=x onerror=alert(2)> {{ 7 * 7 }} \u202e\x1b[31m $x</style>'


def _hostile(value: Any, kept: tuple[str, ...] = ()) -> Any:
    """Every text in it, but of the fields `kept`, followed by what would act if it were not escaped."""
    if isinstance(value, dict):
        return {key: one if key in kept else _hostile(one, kept) for key, one in value.items()}
    if isinstance(value, list):
        return [_hostile(one, kept) for one in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) else value


def test_nothing_of_a_file_acts_on_the_page(here: Path) -> None:
    errors = [{"name": "a", "error": 1e-3, "limit": 1e-4, "within": False}]
    layers = {"failure": None, "picture": "a", "first": errors[0], "before": None, "layers": errors}
    scores = runs.evaluation(here, ("astronaut",))
    for result in scores["results"]:
        of = result["sets"].pop("samples")
        of["pictures"][0]["picture"] = HOSTILE
        result["sets"][HOSTILE] = of
    scores["originals"] = {HOSTILE: {HOSTILE: "original/astronaut.png"}}
    kept = ("kind", "version", "saved", "originals")
    page = Page(
        made(
            *_hostile([runs.parity(runs.compared("x2.onnx", layers=layers)), runs.latency(), scores], kept),
        )
    )
    assert page.scripts == [(FOLDER / "report.js").read_text(encoding="utf-8")]
    acting = {"iframe", "object", "embed", "link", "base", "form", "foreignobject", "a", "use", "image", "video"}
    assert not acting & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("href", "srcset", "srcdoc")], tag
        assert (attributes.get("src") or "data:image/").startswith("data:image/")
    text = " ".join(page.shown)
    assert '<script>alert("1")</script>' in text, "it is shown as it is"
    assert "{{ 7 * 7 }}" in text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_pictures_are_data_of_the_page_and_four_stay_below_3_mb(here: Path) -> None:
    names = ("astronaut", "coffee", "chelsea", "astronaut 2")
    page = Page(made(runs.evaluation(here, names, side=700), runs.latency(), runs.parity()))
    assert Path("report.html").stat().st_size <= 3 * 10**6
    sources = [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]
    assert sum(source.startswith("data:image/webp;base64,") for source in sources) == 4 * 3, "equal ones are there once"
    assert sum(source.startswith("data:image/png;base64,") for source in sources) == 4 * 2
    assert all(attributes["alt"] for tag, attributes in page.elements if tag == "img")
    assert "The middle 640x640 of 700x700." in page.shown
    assert "sst-light-x2 = x2.onnx" in page.shown


def test_error_maps_are_lightest_where_the_error_is_largest() -> None:
    original = np.zeros((32, 32, 3), np.uint8)
    better, worse = original.copy(), original.copy()
    worse[:16] = 90
    better[:16] = 30
    found = compare("a.png", original, {"bicubic": worse, "x2.onnx": better}, {"bicubic": 8.0})
    assert found.full_scale == 90
    assert [(one.name, one.mean, one.psnr) for one in found.maps] == [("bicubic", 45.0, 8.0), ("x2.onnx", 15.0, None)]
    assert error_of(better, original).max() == 30
    light = palette(24).astype(float).sum(axis=1)
    assert (np.diff(light) > 0).all(), "a larger error is lighter"


def _changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """`values` with another value at a path such as results.0.median; ... removes it."""
    values = copy.deepcopy(values)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = values
    for part in parents:
        at = at[part]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "bad.json: was not written by tools/latency.py or tools/parity.py or tools/evaluate.py --json"),
        ({"kind": "doctor", "version": 1}, "bad.json: was written by another tool ('doctor')"),
        ({**runs.latency(), "version": 99}, "bad.json: has version 99"),
        (
            _changed(runs.latency(), "results.0.end_to_end.median", "1"),
            "bad.json.results[0].end_to_end.median must be a n",
        ),
        (
            _changed(runs.latency(), "results.1.end_to_end.p90", float("nan")),
            "bad.json.results[1].end_to_end.p90 must be",
        ),
        (
            _changed(runs.latency(), "results.1.end_to_end", ...),
            "bad.json.results[1].end_to_end must be an object, got None",
        ),
        (_changed(runs.latency(), "results.0.median", 1), None),  # what nobody asks for
        (_changed(runs.latency(), "results.0.run", 7), "bad.json.results[0].run must be the number of one of `runs`"),
        (_changed(runs.latency(), "results", "many"), "bad.json.results must be a list, got 'many'"),
        (_changed(runs.latency(), "runs.0.environment.gpus", None), "bad.json.runs[0].environment.gpus must be a list"),
        (
            _changed(runs.parity(), "comparisons.0.models.0.max_error", True),
            "bad.json.comparisons[0].models[0].max_error",
        ),
        (
            _changed(runs.parity(), "comparisons.0.models.0.file", 3),
            "bad.json.comparisons[0].models[0].file must be text",
        ),
    ],
)
def test_what_no_tool_wrote_is_refused_in_one_line_and_changes_nothing(
    here: Path, values: Any, message: str | None
) -> None:
    Path("report.html").write_text("before")
    result = run(runs.write(Path("bad.json"), values))
    if message is None:
        assert result.exit_code == 0, result.output
        return
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"Error: {message}")
    assert Path("report.html").read_text() == "before"
    assert sorted(os.listdir()) == ["bad.json", "report.html"]


def test_files_are_named_without_their_folders_unless_that_mixes_them_up() -> None:
    assert short_names(["/a/b/x2.onnx", "x2.pt"]) == {"/a/b/x2.onnx": "x2.onnx", "x2.pt": "x2.pt"}
    assert short_names(["/a/x2.onnx", "/b/x2.onnx"]) == {"/a/x2.onnx": "a/x2.onnx", "/b/x2.onnx": "b/x2.onnx"}
    path = "/lib/ribsr/checkpoints/sst-light-x2.safetensors"
    assert short_names([path, "sst-light-x2", f"{path}@bf16"]) == {
        path: "sst-light-x2",
        "sst-light-x2": "sst-light-x2",
        f"{path}@bf16": "sst-light-x2@bf16",
    }
    assert short_names(["x2.onnx", "b/x2.onnx"]) == {"x2.onnx": "x2.onnx", "b/x2.onnx": "b/x2.onnx"}


@pytest.mark.parametrize("saved", ["../secret.png", "/etc/hostname", "link/secret.png"])
def test_a_run_cannot_name_pictures_outside_of_its_folder(here: Path, saved: str) -> None:
    Image.new("RGB", (96, 96)).save("secret.png")
    folder = here / "run"
    folder.mkdir()
    (folder / "link").symlink_to(here)
    values = runs.evaluation(folder)
    values["originals"]["samples"]["coffee.png"] = saved
    result = run(runs.write(folder / "scores.json", values))
    assert result.exit_code == 1
    assert "originals.samples.coffee.png must be a file in " in result.stderr
    assert not Path("report.html").exists()


def test_pictures_that_are_none_or_of_another_size_are_named(here: Path) -> None:
    file = runs.write(Path("scores.json"), runs.evaluation(here))
    Path("x2.onnx/coffee.png").write_bytes(b"no picture")
    result = run(file)
    assert result.exit_code == 1
    assert "Error: x2.onnx/coffee.png: " in result.stderr
    Image.new("RGB", (95, 96)).save("x2.onnx/coffee.png")
    assert "coffee.png, x2: x2.onnx's picture is not of the original's size" in run(file).stderr
    Path("x2.onnx/coffee.png").unlink()
    assert "Error: x2.onnx/coffee.png: no such file" in run(file).stderr


def test_the_runs_themselves_are_not_written_over(here: Path) -> None:
    file = runs.write(Path("a.json"), runs.parity())
    Path("page.html").symlink_to(file)
    for output in (file, "./a.json", "page.html", "photograph.png"):
        result = run(file, "-o", output)
        assert result.exit_code == 2, output
        assert f"-o {Path(output)}: give the page a name of its own that ends in .html" in result.stderr
    assert json.loads(Path(file).read_text())["kind"] == "parity"


def test_a_model_gains_on_the_pictures_that_it_scored(here: Path) -> None:
    """One that fails on the hard picture has the better mean, and yet gains nothing."""
    values = runs.evaluation(here, ("coffee", "chelsea"))
    bicubic, _, model = (result["sets"]["samples"] for result in values["results"])
    for row, psnr in zip(bicubic["pictures"], (20.0, 30.0), strict=True):
        row["psnr"] = psnr
    model["pictures"][1]["psnr"] = 29.0
    model |= {"psnr": 29.0, "pictures": model["pictures"][1:], "failed": [{"picture": "coffee.png", "reason": "no"}]}
    del values["results"][1]
    text = made(values)
    assert "-1.00 dB" in text
    assert "1 of 2 pictures" in text


def test_a_ratio_names_what_it_is_to_also_with_several_files(here: Path) -> None:
    slow = runs.latency(runs.timing("cpu.pt", 1000.0, ratio=1.0))
    fast = runs.latency(runs.timing("gpu.pt", 100.0, ratio=1.0), runs.timing("gpu.plan", 10.0, ratio=0.1))
    text = made(slow, fast)
    assert "as fast: gpu.plan beside gpu.pt" in text
    assert "beside cpu.pt" not in text


def test_a_layer_whose_limit_is_not_finite(here: Path) -> None:
    told = {"measure": "rmse", "largest": 1.0, "nan": 0}
    layers = [
        {"name": "body.0", "error": 1e-3, "limit": None, "within": True, **told},
        {"name": "body.1", "error": None, "limit": None, "within": False, **told},
    ]
    text = made(runs.parity(runs.compared("x2.onnx", layers={"layers": layers})))
    assert "First beyond its tolerance: body.1." in text


def test_pictures_of_few_rows(here: Path) -> None:
    original = np.zeros((3, 640, 3), np.uint8)
    assert compare("thin", original, {"model": original + 9}, {"model": 30.0}).maps


@pytest.mark.parametrize("package", ["vl_convert", "jinja2"])
def test_without_its_packages_one_line_names_the_extra(
    here: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = run(runs.write(Path("a.json"), runs.latency()))
    assert result.exit_code == 1
    assert f"Error: {package} is not installed: " in result.stderr
    assert "[report]" in result.stderr
    assert not Path("report.html").exists()
