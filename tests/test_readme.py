"""What the READMEs say: the quickstart's commands work as written, and links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ribsr.base.pictures import read_picture

ROOT = Path(__file__).resolve().parents[1]
READMES = sorted(path for path in ROOT.glob("*/**/README.md") if path.parts[len(ROOT.parts)][0] != ".")
NAMES = [str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *READMES)]


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def anchors(text: str) -> set[str]:
    """The names by which a page's headings are linked to."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_quickstart_works_as_written(tmp_path: Path) -> None:
    """In a folder that looks like a clone, so that what it writes does not lie in this one."""
    for entry in ROOT.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            if entry.name == "plugins":
                shutil.copytree(entry, tmp_path / entry.name, ignore=shutil.ignore_patterns("build"))
            else:
                (tmp_path / entry.name).symlink_to(entry)
    text = section((ROOT / "README.md").read_text(encoding="utf-8"), "Quickstart")
    commands = [shlex.split(line.removeprefix("$ ")) for line in text.splitlines() if line.startswith("$ ")]
    assert len(commands) == 5
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in commands:
        # A script takes the interpreter that the shell finds: there it is make's, here the one of this test.
        words = [sys.executable, *command[1:]] if command[0] == "python" else [sys.executable, *command]
        done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    small = read_picture(ROOT / "engines" / "samples" / "coffee.png").size
    assert read_picture(tmp_path / "large.png").size == (2 * small.height, 2 * small.width)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file) if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("name", NAMES)
def test_a_readme_names_files_that_exist(name: str) -> None:
    """`tools/parity.py` and the like; but for the operator `twice`, by which plugins/README.md tells how to add one."""
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    files = set(re.findall(r"\b(?:tools|engines|export|plugins|ribsr|tests)/[\w/]+\.(?:py|md|h|cu|cpp)\b", text))
    missing = [file for file in files if not ((ROOT / file).exists() or (page.parent / file).exists())]
    assert not [file for file in missing if "twice" not in file]
