"""Writing files that are either complete or not there, fingerprinting them, and locks that end with their process."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

TEMPORARY: set[Path] = set()
"""Files and folders that exist now and are not to stay; `ribsr.base.interrupt` removes them where nobody else can."""

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


def check_target(path: str | Path) -> None:
    """Raises OSError unless a file can be written here: its folder is there and takes files, and what has this name, if
    anything, is a file that is not write-protected, or a symbolic link to where a file can be written."""
    check_folder(_target(Path(path)).parent)


def no_file(path: Path, wanted: str) -> str | None:
    """Why there is no file to read at `path`, where `wanted`, such as "a picture", is expected; None if there is."""
    if path.is_file():
        return None
    if path.is_dir():
        return f"is a folder, not {wanted}"
    if path.exists():
        return "is a pipe or device, not a file"
    return "is a link that leads nowhere" if path.is_symlink() else "no such file"


def check_folder(folder: str | Path) -> None:
    """Raises OSError unless files can be made in a folder; only making one tells."""
    try:
        with _hidden(Path(folder), _new_file):
            pass
    except OSError as error:
        raise OSError(f"{folder}: no file can be written to this folder ({error.strerror})") from None


def _new_file(path: Path) -> None:
    """By open(2), so that the user's umask decides who may read it."""
    path.touch(exist_ok=False)


def _target(path: Path) -> Path:
    """Where writing to `path` ends up, through symbolic links. Raises OSError where that can be no file."""
    try:
        target = path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):  # the latter until Python 3.12
        target = path
    if target.is_symlink():
        raise OSError(f"{path}: is a symbolic link that leads back to itself")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; name a file")
    if target.exists() and not target.is_file():  # the new file would take a device's place
        raise OSError(f"{path}: is a device or a pipe; name a file")
    if target.exists() and not os.access(target, os.W_OK):  # a new file would take its place all the same
        raise PermissionError(f"{path}: is write-protected; name another file")
    return target


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yields a temporary name in `path`'s folder; it becomes `path` when the block ends without an exception.

    What comes out is as if `path` had been opened for writing: a symbolic link stays one, an existing file keeps its
    permissions, a new one gets the user's usual ones. The temporary name is short, whatever `path`'s is: names of files
    may not be longer than 255 bytes. Raises OSError when it cannot be written to, as `check_target` does or the system.
    What a killed process has left in that folder is removed.
    """
    target = _target(Path(path))
    with _hidden(target.parent, _new_file) as temporary:
        yield temporary
        if target.exists():
            os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)


@contextmanager
def temporary_folder(beside: Path | None = None) -> Iterator[Path]:
    """Yields a new folder, with a hidden name in `beside` or in the system's place for such; it goes with the block."""
    if beside is not None:
        with _hidden(beside, lambda folder: folder.mkdir(0o700)) as folder:
            yield folder
        return
    folder = Path(mkdtemp())
    TEMPORARY.add(folder)
    try:
        yield folder
    finally:
        remove(folder)
        TEMPORARY.discard(folder)


@contextmanager
def _hidden(folder: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """Yields the hidden name of what `make` makes in a folder. It is locked, and goes with the block."""
    _remove_left(folder)
    temporary = folder / f".ribsr-{secrets.token_hex(4)}.tmp"
    TEMPORARY.add(temporary)
    lock = None
    try:
        make(temporary)
        lock = _lock(temporary)
        yield temporary
    finally:
        remove(temporary)
        TEMPORARY.discard(temporary)
        if lock is not None:
            os.close(lock)


_OURS = re.compile(r"\.ribsr-[0-9a-f]{8}\.tmp")
"""Names that `_hidden` gives; others, however alike, are somebody's files."""

_JUST_NOW = 2.0
"""Seconds for which nothing is taken for left: it may not be locked yet, or a linker has put another in its place."""

_looked_through: set[Path] = set()


def _remove_left(folder: Path) -> None:
    """Removes what killed processes have left in a folder, once a process: what is hidden, ours, and locked by nobody.

    Where the file system knows no locks, it stays.
    """
    if fcntl is None or (resolved := folder.resolve()) in _looked_through:
        return
    _looked_through.add(resolved)
    with suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(folder) if _OURS.fullmatch(entry.name)]:
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime < _JUST_NOW:
                    continue
                if (lock := _lock(path)) is not None:
                    remove(path)
                    os.close(lock)


def _lock(path: Path) -> int | None:
    """A descriptor that holds a file or folder until it is closed or the process ends, however that ends.

    None: another one holds it, or the system or the file system knows no locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


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


@contextmanager
def locked(path: str | Path) -> Iterator[bool]:
    """Holds a file as a lock, and yields whether no other process does. It ends with the process at the latest, however
    that ends; the file stays, and says nothing. Where the file system knows no locks, everybody gets this one."""
    with open(path, "ab") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError as error:
            alone = not isinstance(error, BlockingIOError)
        yield alone


def foreign(path: str | Path, wanted: str = "a model") -> str | None:
    """What a file is by its beginning, where that is nothing like what is `wanted`, but gets its name by accident."""
    with open(path, "rb") as file:
        head = file.read(512)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "is empty; copy or download it again"
    if not head.strip(b"\0"):
        return "begins with zeros only, as files do whose download or copy broke off; copy or download it again"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself, which git lfs pull fetches"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"is a web page, not {wanted}: log in where it comes from, or take its download link"
    return None


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
