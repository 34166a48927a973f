"""What parity compares with: a model that runs now, or a recording of one from whatever machine.

So runtimes that cannot share a process, or a machine, are compared all the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import is_checkpoint
from engines.base import HALVES, Engine, EngineError
from engines.compare import EngineReference, Pictures
from ribsr.base.errors import first_line
from ribsr.base.files import atomic
from ribsr.base.sizes import Limits, Size
from tools._common import ModelName, environment, open_model

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1


class LiveReference(EngineReference):
    """A model as reference. given: pictures to compare on; sizes: of the samples, where there are none given.

    description: the fields of `engines.Description`, as in JSON.
    """

    def __init__(self, name: ModelName, options: dict[str, Any], given: Pictures, sizes: Sequence[Size]):
        self._given, self._sizes = given, sizes

        def opened(precision: str | None) -> Engine:
            chosen = options
            if precision is not None and is_checkpoint(name.path) and options.get("attention") is None:
                chosen = {**options, "attention": "sdpa"}  # not our own kernel, whose errors would excuse themselves
            return open_model(ModelName(name.path, precision), chosen)

        engine = opened(name.precision)
        super().__init__(engine, opened if is_checkpoint(name.path) else None)
        self.description: dict[str, Any] = asdict(engine.describe())
        self._limits = engine.describe().limits

    def pictures(self, limits: Limits) -> Pictures:
        """The pictures to compare on, for a model of these limits. Raises EngineError if none of those given fits."""
        from engines import samples

        fixed = limits.fixed or self._limits.fixed
        if self._given:
            fitting = [(name, x) for name, x in self._given if fixed in (None, Size.of(x))]
            if not fitting:
                raise EngineError(f"takes pictures of {fixed} only; give one of that size with --image")
            return fitting
        if fixed is not None:
            return samples.at(fixed)
        return [picture for size in self._sizes for picture in samples.at(size)] or samples.load()

    def record(self, path: str, halves: bool) -> int:
        """Writes inputs and outputs of all pictures that were used, or of the default ones; returns their number."""
        import numpy as np

        for name, x in list(self.inputs.items()) or self.pictures(self._limits):
            self.output(name, x)
            for precision in HALVES if halves else ():
                self.half_output(precision, name, x)
        arrays = {f"input/{i}": x for i, x in enumerate(self.inputs.values())}
        for i, name in enumerate(self.inputs):
            made = {precision or "output": y for (precision, of), y in self.outputs.items() if of == name}
            arrays.update({f"{kind}/{i}": y for kind, y in made.items()})
        meta = {
            "format": FORMAT,
            "description": self.description,
            "environment": environment(),
            "pictures": list(self.inputs),
        }
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
        return len(self.inputs)


class RecordedReference(AbstractContextManager):
    """A recording as reference: what `LiveReference.record` wrote."""

    def __init__(self, path: str):
        self._path = path
        self._arrays = _read(path)
        meta = json.loads(str(self._arrays["meta"]))
        if meta["format"] != FORMAT:
            raise EngineError(f"{path}: a recording of format {meta['format']}; this version reads {FORMAT}")
        self.description: dict[str, Any] = meta["description"]
        self.description.setdefault("form", self.description.get("attention"))  # its name until 0.1
        self._names: list[str] = meta["pictures"]

    def __exit__(self, *_: object) -> None:
        self._arrays.clear()

    def pictures(self, limits: Limits) -> Pictures:
        recorded = [(name, self._arrays[f"input/{i}"]) for i, name in enumerate(self._names)]
        fitting = [(name, x) for name, x in recorded if limits.fixed in (None, Size.of(x))]
        if not fitting:
            size = limits.fixed
            raise EngineError(f"takes pictures of {size} only, and {self._path} has none; record with --size {size}")
        return fitting

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        return self._arrays[f"output/{self._names.index(name)}"]

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return self._arrays.get(f"{precision}/{self._names.index(name)}")


def _read(path: str) -> dict[str, np.ndarray]:
    import zipfile

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
