"""Checkpoints that come with the toolkit, by name. No torch here."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "checkpoints"


def names() -> list[str]:
    """What can be asked for, e.g. `sst-light-x2`."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def find(path: str | Path) -> Path:
    """The bundled checkpoint that `path` names, if it is such a name and no file or folder here; else `path` itself."""
    if str(path) in names() and not Path(path).exists():
        return FOLDER / f"{path}.safetensors"
    return Path(path)
