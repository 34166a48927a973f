"""Models as a runtime compiled them, kept on disk: OpenVINO opens one again in a sixth of the time; TensorRT RTX has
the kernels that it makes when a size comes for the first time.

OpenVINO's own cache takes a file for the same by its name and time, and reads what a killed process left half written.
Here a name says all that a compiled model depends on, and a file is whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from engines.base import EngineError
from ribsr.base.errors import first_line
from ribsr.base.files import atomic, check_folder

SUFFIX = ".compiled"

MOST = 16
"""Models that are kept, of some 25 MB each; those that were not used for the longest time go."""


def default_folder(runtime: str) -> Path:
    """`ribsr/openvino`, or another runtime's, in the user's folder for caches. Raises OSError where there is none."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(named) if os.path.isabs(named) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(str(error)) from None
    return base / "ribsr" / runtime


class Cache:
    """A folder of compiled models, for any number of processes. Raises OSError unless files can be written to it."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        check_folder(folder)
        self._folder = folder

    def file(self, parts: dict[str, Any]) -> Path:
        """Where a model is, or would be, that depends on these parts, which JSON can hold."""
        told = json.dumps(parts, sort_keys=True).encode()
        return self._folder / f"{hashlib.sha256(told).hexdigest()}{SUFFIX}"

    def read(self, parts: dict[str, Any]) -> bytes | None:
        """The compiled model of these parts; None if there is none, or it is damaged."""
        file = self.file(parts)
        with suppress(OSError):
            content = file.read_bytes()
            digest, model = content[:_DIGEST], content[_DIGEST:]
            if hashlib.sha256(model).digest() == digest:
                os.utime(file)
                return model
        return None

    def write(self, parts: dict[str, Any], model: bytes) -> None:
        """Keeps it, and removes what is beyond MOST. Raises OSError."""
        with atomic(self.file(parts)) as temporary:
            temporary.write_bytes(hashlib.sha256(model).digest() + model)
        used: list[tuple[float, Path]] = []
        for file in self._folder.glob(f"*{SUFFIX}"):
            with suppress(OSError):  # another process has removed it
                used.append((file.stat().st_mtime, file))
        for _, file in sorted(used, reverse=True)[MOST:]:
            with suppress(OSError):
                file.unlink()


_DIGEST = hashlib.sha256().digest_size


def open_cache(path: str, folder: str | Path | None, runtime: str) -> tuple[Cache | None, tuple[str, ...]]:
    """The cache for a model's file, in a folder or the runtime's own, and notes about it.

    Raises EngineError for a folder that was named and cannot be written to.
    """
    try:
        return Cache(default_folder(runtime) if folder is None else Path(folder)), ()
    except OSError as error:
        why = first_line(error)
    if folder is not None:
        raise EngineError(f"{path}: compiled models cannot be kept where --cache says ({why}); name another folder")
    return None, (f"{path}: compiled models are not kept ({why}), so it opens slowly; name a folder with --cache",)
