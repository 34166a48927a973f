"""What models are compared with: a model that runs now, or a recording of its pictures and outputs (.npz).

A recording holds input/i, output/i and, of checkpoints, fp16/i and bf16/i for every picture i: float32 [B, 3, H, W];
and `meta`, JSON: format, description, environment, and the pictures' names.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import samples
from engines.base import HALVES, EngineError
from engines.compare import Pictures, RunningReference
from ribsr.base.errors import first_line
from ribsr.base.files import atomic
from ribsr.base.sizes import Limits, Size
from tools._common import ModelName, engine_options_for, environment

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1


class ModelReference(RunningReference):
    """A model as reference, on the pictures given, else on the samples at `sizes`, else on those of `samples.load`."""

    def __init__(self, name: ModelName, options: dict[str, Any], given: Pictures, sizes: Sequence[Size]):
        super().__init__(name.path, name.precision, **engine_options_for(name, options))
        self._given, self._sizes = given, sizes
        self.inputs: dict[str, np.ndarray] = {}
        self.description: dict[str, Any] = self.described.to_json()

    @property
    def limits(self) -> Limits:
        """Of the pictures that it takes itself."""
        return self.described.limits

    def advice(self, limits: Limits) -> str:
        """How to get pictures for a model of these limits."""
        return "give one of that size with --image" if self._given else "compare on such a size (--size)"

    def pictures(self, limits: Limits) -> Pictures:
        """The pictures to compare on: those given, of whatever sizes, else some for a model of these limits."""
        if self._given:
            return self._given
        fixed = limits.fixed or self.limits.fixed
        if fixed is not None:
            return samples.at(fixed)
        return [picture for size in self._sizes for picture in samples.at(size)] or samples.load()

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        self.inputs[name] = x
        return super().output(name, x)

    def record(self, path: str, halves: bool) -> int:
        """Writes inputs and outputs of all pictures that were used, or of the default ones; returns their number."""
        import numpy as np

        arrays: dict[str, np.ndarray] = {}
        pictures = list(self.inputs.items()) or self.pictures(self.limits)
        for i, (name, x) in enumerate(pictures):
            arrays |= {f"input/{i}": x, f"output/{i}": self.output(name, x)}
            for precision in HALVES if halves else ():
                self.half_output(precision, name, x)
            kept = [half for half in HALVES if halves and (half, name) in self.outputs]
            arrays |= {f"{half}/{i}": self.outputs[half, name] for half in kept}
        meta = {
            "format": FORMAT,
            "description": self.description,
            "environment": environment(),
            "pictures": [name for name, _ in pictures],
        }
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
        return len(pictures)


class RecordedReference(AbstractContextManager):
    """A recording as reference: what `ModelReference.record` wrote, on whatever machine."""

    def __init__(self, path: str):
        self._path = path
        self._arrays = _read_recording(path)
        meta = json.loads(str(self._arrays["meta"]))
        if meta["format"] != FORMAT:
            raise EngineError(f"{path}: a recording of format {meta['format']}; this version reads {FORMAT}")
        self.description: dict[str, Any] = meta["description"]
        self.description.setdefault("form", self.description.get("attention"))  # its name until 0.1
        self._names: list[str] = meta["pictures"]

    def __exit__(self, *_: object) -> None:
        self._arrays.clear()

    limits = Limits()
    """Of the pictures that it takes itself: what it has of them is for `pictures` to say."""

    def advice(self, limits: Limits) -> str:
        """How to get pictures for a model of these limits."""
        return f"{self._path} has none; record with --size {limits.nearest(samples.SIZES['astronaut'])}"

    def pictures(self, limits: Limits) -> Pictures:
        """Those of the recording, of whatever sizes."""
        return [(name, self._arrays[f"input/{i}"]) for i, name in enumerate(self._names)]

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._arrays[f"output/{self._names.index(name)}"]

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return self._arrays.get(f"{precision}/{self._names.index(name)}")


def _read_recording(path: str) -> dict[str, np.ndarray]:
    import numpy as np

    if not Path(path).is_file():
        raise EngineError(f"{path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise EngineError(f"{path}: not a recording, or damaged ({first_line(error)})") from None
    if "meta" not in arrays or "input/0" not in arrays:
        raise EngineError(f"{path}: not a recording; make one with tools/parity.py MODEL --record {path}")
    return arrays
