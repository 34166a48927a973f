"""The one proof that an engine computes what another does: a `Difference` on pictures, and the `Rule` it has to keep.

`export.onnx`, `export.trt` and `tools/parity.py` all ask `prove`. NaN never passes; besides:
- float32: no value is off by more than MAX_ERROR (values are 0 to 1);
- half precision: the root mean square error is at most HALF_FACTOR times that of PyTorch running the checkpoint in the
  same precision. So a runtime may round as PyTorch does, but must not lose more;
- TF32: the least PSNR of LEAST_PSNR, since only a GPU can say how far off PyTorch is in it;
- where PyTorch cannot be asked, as on a machine that builds plans: the least PSNR of LEAST_PSNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engines import is_checkpoint, open_engine
from engines.base import HALVES, Engine, EngineError

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

MAX_ERROR = 1e-4
HALF_FACTOR = 2.0

LEAST_PSNR = {"fp32": 60.0, "tf32": 60.0, "fp16": 50.0, "bf16": 32.0}
"""dB: for float16 what the toolkit promises; for bfloat16 its three bits of mantissa less, 18 dB; for float32 an error
of 1e-3; TF32 has float16's mantissa and float32's sums."""

Pictures = Sequence[tuple[str, "np.ndarray"]]
"""Name and RGB float32 [1, 3, H, W] of each."""


class CannotJudge(EngineError):
    """Half precision beside a reference that does not say how far off PyTorch is in it."""


def finite(value: float) -> float | None:
    """The value, or None, which JSON can hold, where it is NaN or infinite."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class Difference:
    """How far outputs are from a reference's, over any number of pictures; `a + b` is that over both's.

    NaN and infinite values are counted and left out of the rest. values: of all outputs. absolute, squared: sums of the
    errors. pixels_off: of which some channel differs after rounding to 8 bits.
    """

    values: int = 0
    nan: int = 0
    max_error: float = 0.0
    absolute: float = 0.0
    squared: float = 0.0
    pixels: int = 0
    pixels_off: int = 0

    @classmethod
    def between(cls, reference: np.ndarray, output: np.ndarray) -> Self:
        """That of one output [B, 3, H, W]; pixels are compared as they would be written, rounded to 8 bits."""
        import numpy as np

        from ribsr.base.pictures import to_bytes

        finite = np.isfinite(output)
        error = np.where(finite, output, 0).astype(np.float64) - np.where(finite, reference, 0)
        off = to_bytes(np.where(finite, output, -1)) != to_bytes(reference)
        return cls(
            values=output.size,
            nan=int(output.size - np.count_nonzero(finite)),
            max_error=float(np.abs(error).max()),
            absolute=float(np.abs(error).sum()),
            squared=float(np.square(error).sum()),
            pixels=off[:, 0].size,
            pixels_off=int(np.count_nonzero(off.any(axis=1) | ~finite.all(axis=1))),
        )

    def __add__(self, other: Difference) -> Difference:
        summed = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Difference(**{**summed, "max_error": max(self.max_error, other.max_error)})

    @property
    def mean_error(self) -> float:
        return self.absolute / max(1, self.values - self.nan)

    @property
    def rmse(self) -> float:
        return math.sqrt(self.squared / max(1, self.values - self.nan))

    @property
    def psnr(self) -> float:
        """10·log10(1 / mean square error) in dB; infinite where both are equal."""
        return -20 * math.log10(self.rmse) if self.rmse else math.inf

    @property
    def share_off(self) -> float:
        """Share of pixels that differ in 8 bits."""
        return self.pixels_off / max(1, self.pixels)

    def to_json(self) -> dict[str, Any]:
        """`psnr` is null where both are equal."""
        return {
            "psnr": finite(self.psnr),
            "max_error": self.max_error,
            "mean_error": self.mean_error,
            "rmse": self.rmse,
            "share_off_8bit": self.share_off,
            "nan": self.nan,
        }


@dataclass(frozen=True)
class Rule:
    """What a difference may be. text: as tables show it. source: whose error a limit comes from, for messages."""

    text: str
    max_error: float = math.inf
    rmse: float = math.inf
    psnr: float = -math.inf
    source: str = ""

    @classmethod
    def exact(cls, limit: float = MAX_ERROR) -> Rule:
        """No value is off by more than `limit`."""
        return cls(f"max ≤ {limit:.3g}", max_error=limit)

    @classmethod
    def half(cls, pytorch: Difference, precision: str, factor: float = HALF_FACTOR) -> Rule:
        """The rmse is at most `factor` times that of PyTorch in a half precision."""
        of = f"{factor:g} × {pytorch.rmse:.3g}"
        return cls(f"rmse ≤ {of}", rmse=factor * pytorch.rmse, source=f"{of}, PyTorch's in {precision}")

    @classmethod
    def least_psnr(cls, precision: str) -> Rule:
        """What LEAST_PSNR asks for."""
        return cls(f"PSNR ≥ {LEAST_PSNR[precision]:g} dB", psnr=LEAST_PSNR[precision])

    def broken_by(self, found: Difference) -> str | None:
        """What of a difference is not allowed; None if it passes."""
        if not found.values:
            return "nothing was compared"
        if found.nan:
            return f"{found.nan} NaN or infinite values of {found.values}"
        if found.max_error > self.max_error:
            return f"largest error {found.max_error:.3g} is above {self.max_error:.3g}"
        if found.rmse > self.rmse:
            return f"rmse {found.rmse:.3g} is above {self.source}"
        if found.psnr < self.psnr:
            return f"PSNR {found.psnr:.1f} dB is below {self.psnr:g} dB"
        return None


class Reference(Protocol):
    """What engines are compared with: an engine that runs now, or a recording of one."""

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        """The reference's output for a picture, finite. Raises EngineError."""
        ...

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        """PyTorch's output in half precision for the same weights; None if the reference cannot say."""
        ...


class RunningReference(ExitStack):
    """A model as reference, usually the checkpoint. Its outputs are kept: each picture runs once per precision.

    path, precision, options: as `open_engine` takes them; it opens a checkpoint once more for each half precision that
    is asked for. In half precision that is PyTorch's own attention, unless the options name one: not our own kernel,
    whose errors would excuse themselves. Raises EngineError as `open_engine` does.
    """

    def __init__(self, path: str | Path, precision: str | None = None, **options: Any):
        super().__init__()
        options.pop("tf32", None)  # what is measured is how far off it is
        self._path, self._precision, self._options = path, precision, options
        self._engines: dict[str | None, Engine] = {}
        self.outputs: dict[tuple[str | None, str], np.ndarray] = {}
        self.described = self._engine(precision).describe()

    def _engine(self, precision: str | None) -> Engine:
        if precision not in self._engines:
            options = self._options
            if precision is not None and is_checkpoint(self._path) and options.get("attention") is None:
                options = {**options, "attention": "sdpa"}
            self._engines[precision] = self.enter_context(open_engine(self._path, precision=precision, **options))
        return self._engines[precision]

    def _run(self, precision: str | None, name: str, x: np.ndarray) -> np.ndarray:
        key = (precision, name)
        if key not in self.outputs:
            self.outputs[key] = self._engine(precision).run(x)
        return self.outputs[key]

    def engine(self, half: str | None = None) -> Engine:
        """The reference, or PyTorch in a half precision where it is a checkpoint. Raises EngineError."""
        return self._engine(half or self._precision)

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        import numpy as np

        y = self._run(self._precision, name, x)
        if not np.isfinite(y).all():
            raise EngineError(f"{self._path}: the reference itself gives NaN or infinite values on {name}")
        return y

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return self._run(precision, name, x) if is_checkpoint(self._path) else None


@dataclass(frozen=True)
class Proof:
    """What came out of a comparison. pictures: the difference of each. notes: what the user should know of the rule."""

    pictures: dict[str, Difference]
    rule: Rule
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> Difference:
        """Over all pictures."""
        return sum(self.pictures.values(), Difference())

    @property
    def failure(self) -> str | None:
        """Why it does not pass; None if it does."""
        return self.rule.broken_by(self.total)


def prove(
    engine: Engine,
    reference: Reference,
    pictures: Pictures,
    rule: Rule | None = None,
    half_factor: float = HALF_FACTOR,
    see: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    reach: Callable[[float], object] = lambda share: None,
) -> Proof:
    """Compares an engine with the reference on pictures. rule: instead of the one for the engine's precision.

    see: is called with the name of each picture, the reference's output and the engine's, of one shape. reach: with the
    share, 0 to 1, of the work that is done, after each picture.
    Raises EngineError where one of them fails, and CannotJudge where half precision has no yardstick.
    """
    import numpy as np

    described = engine.describe()
    in_half = rule is None and described.precision in HALVES
    values, done, differences = sum(x.size for _, x in pictures) * (2 if in_half else 1), 0, {}

    def advance(x: np.ndarray) -> None:
        nonlocal done
        done += x.size
        reach(min(1.0, done / values))  # where float16 overflows, bfloat16 runs as well

    for name, x in pictures:
        y = engine.run(np.repeat(x, described.batch or 1, axis=0))
        expected = np.broadcast_to(reference.output(name, x), y.shape)
        differences[name] = Difference.between(expected, y)
        if see is not None:
            see(name, expected, y)
        advance(x)
    if rule is not None:
        return Proof(differences, rule)
    if described.precision == "tf32":
        return Proof(differences, Rule.least_psnr("tf32"))
    if not in_half:
        return Proof(differences, Rule.exact())
    rule, notes = _half_rule(described.precision, reference, pictures, half_factor, advance)
    return Proof(differences, rule, notes)


def _half_rule(
    precision: str, reference: Reference, pictures: Pictures, factor: float, advance: Callable[[np.ndarray], object]
) -> tuple[Rule, list[str]]:
    """The rule for a half precision, and notes. advance: called after each picture, with it.

    Where PyTorch overflows in fp16, an exported model that keeps what overflows in float32 does better than it: its
    yardstick is bf16 then.
    """
    notes = []
    for used in (precision, "bf16"):
        pytorch = Difference()
        for name, x in pictures:
            half = reference.half_output(used, name, x)
            if half is None:
                raise CannotJudge(f"cannot be judged: the reference has no {used} outputs of PyTorch")
            pytorch += Difference.between(reference.output(name, x), half)
            advance(x)
        if not pytorch.nan:
            return Rule.half(pytorch, used, factor), notes
        notes.append(f"PyTorch itself gives {pytorch.nan} NaN or infinite values in {used}")
    raise CannotJudge("cannot be judged: PyTorch overflows in half precision")
