"""Writing files that are either complete or not there, and fingerprinting them."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

TEMPORARY: set[Path] = set()
"""Files and folders that exist now and are not to stay; `ribsr.base.interrupt` removes them where nobody else can."""


def check_target(path: str | Path) -> None:
    """Raises OSError unless a file can get this name: its folder is there, and it is no folder itself."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in `path`'s folder; it becomes `path` when the block ends without an exception.

    What comes out is as if `path` had been opened for writing: a symbolic link stays one, an existing file keeps its
    permissions, a new one gets the user's usual ones. The temporary name is short, whatever `path`'s is: names of files
    may not be longer than 255 bytes. Raises OSError when it cannot be written to, as `check_target` does or the system.
    """
    path = Path(path)
    target = path.resolve() if path.is_symlink() else path
    check_target(target)
    temporary = target.with_name(f".{secrets.token_hex(4)}.tmp")
    TEMPORARY.add(temporary)
    try:
        temporary.touch(exist_ok=False)  # by open(2), so that the user's umask decides who may read it
        yield temporary
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
        TEMPORARY.discard(temporary)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yields a new folder, with a hidden name in `beside` or in the system's place for such; it goes with the block."""
    folder = Path(mkdtemp(prefix=".", suffix=".tmp", dir=beside) if beside is not None else mkdtemp())
    TEMPORARY.add(folder)
    try:
        yield folder
    finally:
        remove(folder)
        TEMPORARY.discard(folder)


def remove(path: Path) -> None:
    """Removes a file, or a folder and all in it, if it is there and can be."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()


def amount(count: int) -> str:
    """So many bytes, as people read them: `12.3 MiB`."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
