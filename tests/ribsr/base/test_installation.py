"""Hints of pip that work as printed, and foreign packages that are told for what they are."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ribsr.base import installation
from ribsr.base.command import EXTRAS
from ribsr.base.installation import pip_install
from tests.test_house import ROOT, product
from tools.doctor import PACKAGES

# pip


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """installed(url, editable): the toolkit lies in tmp_path, where pip brought it from there; None: by no pip."""

    def install(url: str | None, *, editable: bool = False) -> None:
        noted = None if url is None else json.dumps({"url": url, "dir_info": {"editable": editable}})

        def distribution(name: str) -> Any:
            if noted is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return SimpleNamespace(
                read_text=lambda _: noted, requires=['a>=1; extra == "trt"', "b>=2", "c>1 ; extra=='x'"]
            )

        monkeypatch.setattr(importlib.metadata, "distribution", distribution)
        monkeypatch.setattr(installation, "FOLDER", tmp_path)

    return install


def test_in_a_clone(installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").touch()
    for url, editable, option in (
        (None, False, ""),
        (tmp_path.as_uri(), False, ""),
        (tmp_path.as_uri(), True, "-e "),
        ("file:///elsewhere", True, ""),
    ):
        installed(url, editable=editable)
        monkeypatch.chdir("/")
        assert pip_install("trt") == f"pip install {option}'{tmp_path}[trt]'"
        monkeypatch.chdir(tmp_path)
        assert pip_install("trt") == f"pip install {option}'.[trt]'"


def test_installed_from_a_folder_or_a_wheel(installed: Any, tmp_path: Path) -> None:
    for name in ("it's a clone", "ribsr-0.1.0-py3-none-any.whl"):
        source = tmp_path / name
        source.touch()
        installed(source.as_uri())
        quoted = str(source).replace("'", "'\"'\"'")
        assert pip_install("trt") == f"pip install '{quoted}[trt]'"


@pytest.mark.parametrize("url", ["file:///gone/away", "https://example.org/ribsr.whl", "git+ssh://x", ""])
def test_where_the_source_is_gone_packages_are_named(installed: Any, url: str) -> None:
    installed(url)
    assert pip_install("trt") == "pip install 'a>=1'"


def test_copied_by_hand(installed: Any) -> None:
    installed(None)
    assert pip_install("trt") == "pip install '.[trt]' in a clone of this toolkit"


def test_every_extra_that_is_named_exists() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^([\w-]+) =", section, re.MULTILINE))
    named = {extra for row in EXTRAS.values() for extra in row} | set(PACKAGES.values())
    for source in product().values():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pip_install":
                named |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert {"ort", "ort-gpu", "trt", "export"} <= named <= extras


def test_nothing_else_tells_to_install_the_toolkit() -> None:
    """Its name in an index could be registered by anybody."""
    for file, text in product().items():
        if file != "ribsr/base/installation.py":
            written = re.findall(r"pip install[^\n]*", text)
            assert not [line for line in written if re.search(r"ribsr|\[|\{", line)], file
    texts = [*product().values(), (ROOT / "README.md").read_text(), (ROOT / "tools" / "README.md").read_text()]
    assert not [text for text in texts if "ribsr[" in text]


# Foreign packages


def run(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False)


RIBSR = ("-c", "import sys; sys.path.remove(''); from ribsr.cli import main; main()")
"""The command ribsr, which does not have the working directory on its path."""


@pytest.mark.parametrize(
    ("module", "foreign"), [("export.onnx", "engines"), ("export.trt", "plugins"), ("engines.upscale", "plugins")]
)
def test_a_module_command_beside_a_foreign_package(tmp_path: Path, module: str, foreign: str) -> None:
    (tmp_path / foreign).mkdir()
    assert run("-m", module, "--help", cwd=tmp_path).returncode == 0  # a mere folder
    (tmp_path / foreign / "__init__.py").touch()
    done = run("-m", module, "--help", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: found another package called {foreign} at {tmp_path / foreign}; start it from another folder, or use "
        "the command ribsr\n"
    )
    assert run(*RIBSR, *module.removeprefix("engines.").split("."), "--help", cwd=tmp_path).returncode == 0


def test_a_module_command_beside_what_it_does_not_use(tmp_path: Path) -> None:
    for name in ("tools", "export", "engines"):
        (tmp_path / f"{name}.py").touch()
    assert run("-m", "plugins.build", "--help", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("foreign", ["engines", "export", "plugins", "tools"])
def test_the_command_with_a_foreign_package_on_the_path(tmp_path: Path, foreign: str) -> None:
    (tmp_path / f"{foreign}.py").touch()
    done = run(*RIBSR, "--help", cwd=Path("/"), path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: found another package called {foreign} at {tmp_path / foreign}.py; take {tmp_path} off Python's path "
        "(PYTHONPATH, installed packages)\n"
    )


def test_importing_beside_a_foreign_package(tmp_path: Path) -> None:
    (tmp_path / "plugins.py").touch()
    done = run("-c", "import engines", cwd=tmp_path)
    assert "ImportError: found another package called plugins at " in done.stderr.splitlines()[-1]
