"""Where this toolkit lies: what brings the packages that it lacks, and whether its folders are the ones Python finds.

Its folders have names that any project may have (engines, export, plugins, tools), and `python -m` looks into the
working directory first.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

FOLDER = Path(__file__).absolute().parents[2]
"""The folder that has all of the toolkit's packages in it: a clone, or Python's site-packages."""


def pip_install(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml, as it can be typed here.

    It names the clone or the file that the toolkit was installed from; where that is gone, the packages themselves;
    but never the toolkit by its name, which is not in an index, so that anybody could put something there.
    """
    source, editable = _source()
    if source is not None:
        here = "." if source.samefile(".") else str(source)
        return f"pip install {'-e ' if editable else ''}{shlex.quote(f'{here}[{extra}]')}"
    if named := _requirements(extra):
        return " ".join(["pip install", *map(shlex.quote, named)])
    return f"pip install '.[{extra}]' in a clone of this toolkit"  # copied here by hand


def build_kernels(options: str = "") -> str:
    """The command that builds our kernels where this toolkit looks for them, as it can be typed here."""
    command = "python -m plugins.build" if (FOLDER / "pyproject.toml").is_file() else "ribsr build-kernels"
    return f"{command} {options}".rstrip()


def check_folders(*names: str) -> None:
    """Ends the program, or raises ImportError in one that is not ours, if Python finds other packages of these names.

    Nothing is imported for it.
    """
    for name in names:
        found, ours = _found(name), FOLDER / name
        if found is None or (ours.exists() and found.samefile(ours)):
            continue
        as_module = sys.argv[:1] == ["-m"]  # while `python -m` looks for the module, which this is a part of
        if as_module and found.parent.samefile("."):
            advice = "start it from another folder, or use the command ribsr"
        else:
            advice = f"take {found.parent} off Python's path (PYTHONPATH, installed packages)"
        message = f"found another package called {name} at {found}; {advice}"
        if as_module:
            raise SystemExit(f"Error: {message}")
        raise ImportError(message, name=name)


def _found(name: str) -> Path | None:
    """Where Python finds a package: its folder, or the file of a module. None if nowhere, or not in a file."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # of a module that was made in memory
        return None
    if spec is None or spec.origin is None or not Path(spec.origin).exists():
        return None
    origin = Path(spec.origin)
    return origin.parent if spec.submodule_search_locations is not None else origin


def _source() -> tuple[Path | None, bool]:
    """The clone or wheel that this was installed from, if it is there still; and whether it is used in its place."""
    url, editable = _installed_from()
    if (FOLDER / "pyproject.toml").is_file():
        return FOLDER, editable and url == FOLDER.resolve()
    return (url if url is not None and url.exists() else None), False


def _installed_from() -> tuple[Path | None, bool]:
    """What pip noted down: the file or folder, and whether it was `pip install -e`."""
    try:
        noted = json.loads(importlib.metadata.distribution("ribsr").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError):
        return None, False
    url = urlsplit(noted.get("url", ""))
    path = Path(unquote(url.path)).resolve() if url.scheme == "file" else None
    return path, bool(noted.get("dir_info", {}).get("editable"))


def _requirements(extra: str) -> list[str]:
    """The packages of an extra, as the installed toolkit's metadata have them: `onnx>=1.17`."""
    marked = rf"extra == ['\"]{extra}['\"]"
    try:
        lines = [line.partition(";") for line in importlib.metadata.requires("ribsr") or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    return [requirement.strip() for requirement, _, marker in lines if re.search(marked, marker)]
