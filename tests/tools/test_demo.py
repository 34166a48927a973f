"""tools/demo.py without its minutes: which commands it gives, and what the last of them is about."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from export.onnx import main as export
from tests.terminal import ROOT
from tools import demo
from tools.evaluate import main as evaluate
from tools.latency import main as latency
from tools.parity import main as parity
from tools.report import main as report

COMMANDS = {
    "export.onnx": export,
    "../tools/parity.py": parity,
    "../tools/evaluate.py": evaluate,
    "../tools/latency.py": latency,
    "../tools/report.py": report,
}


def test_every_command_exists_and_the_page_is_of_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def run(folder: Path, title: str, arguments: str) -> None:
        given.append(arguments.removeprefix("-m ").split())
        if given[-1][0] == "engines.upscale":
            *_, small, large = given[-1]
            scale = int(small[len("small_x")])
            with Image.open(folder / small) as picture:
                picture.resize((scale * picture.width, scale * picture.height)).save(folder / large)

    (tmp_path / "engines").mkdir()
    shutil.copytree(ROOT / "engines" / "samples", tmp_path / "engines" / "samples")
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "run", run)
    result = CliRunner().invoke(demo.main)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"{tmp_path / 'demo' / 'report.html'} shows all of it in a browser"
    monkeypatch.chdir(tmp_path / "demo")
    asked = [
        (name, COMMANDS[name].make_context(name, list(arguments)).params)
        for name, *arguments in given
        if name in COMMANDS
    ]
    assert {name for name, *_ in given} == {*COMMANDS, "engines.upscale"}
    written = [params["json_target"] for _, params in asked if params.get("json_target")]
    assert len(written) == 5
    assert asked[-1][0] == "../tools/report.py"
    assert sorted(asked[-1][1]["runs"]) == sorted(written)
    assert asked[-1][1]["output"] == Path("report.html")
