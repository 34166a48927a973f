"""The one proof that an engine computes what another does: a `Difference` on pictures, and the `Rule` it has to keep.

`export.onnx`, `export.trt` and `tools/parity.py` all ask `prove`. NaN never passes; besides:
- float32: no value is off by more than MAX_ERROR (values are 0 to 1);
- half precision: the root mean square error is at most HALF_FACTOR times that of PyTorch running the checkpoint in the
  same precision. So a runtime may round as PyTorch does, but must not lose more;
- where PyTorch cannot be asked, as on a machine that builds plans: the least PSNR of LEAST_PSNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from engines.base import HALVES, Engine, EngineError

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

MAX_ERROR = 1e-4
HALF_FACTOR = 2.0

LEAST_PSNR = {"fp32": 60.0, "fp16": 50.0, "bf16": 32.0}
"""dB: for float16 what the toolkit promises; for bfloat16 its three bits of mantissa less, 18 dB; for float32 an error
of 1e-3, which TF32 would not keep to."""

Pictures = Sequence[tuple[str, "np.ndarray"]]
"""Name and RGB float32 [1, 3, H, W] of each."""


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
            "psnr": self.psnr if math.isfinite(self.psnr) else None,
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


class EngineReference:
    """An open engine as reference. Its outputs are kept, so that each picture runs once per precision.

    half: opens PyTorch with the same weights in a precision; None where there is no checkpoint. A context manager that
    closes all engines.
    """

    def __init__(self, engine: Engine, half: Callable[[str], Engine] | None = None):
        self._engines, self._half = {"": engine}, half
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[tuple[str, str], np.ndarray] = {}
        """By precision (`""`: the engine's own) and picture."""

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        import numpy as np

        y = self._run("", name, x)
        if not np.isfinite(y).all():
            path = self._engines[""].describe().path
            raise EngineError(f"{path}: the reference itself gives NaN or infinite values on {name}")
        return y

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return None if self._half is None else self._run(precision, name, x)

    def _run(self, precision: str, name: str, x: np.ndarray) -> np.ndarray:
        if (precision, name) not in self.outputs:
            if precision not in self._engines:
                assert self._half is not None
                self._engines[precision] = self._half(precision)
            self.inputs[name] = x
            self.outputs[precision, name] = self._engines[precision].run(x)
        return self.outputs[precision, name]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self._engines.values():
            engine.close()


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
) -> Proof:
    """Compares an engine with the reference on pictures. rule: instead of the one for the engine's precision.

    Raises EngineError where one of them fails, and where half precision cannot be judged.
    """
    import numpy as np

    described = engine.describe()
    differences = {}
    for name, x in pictures:
        y = engine.run(np.repeat(x, described.batch or 1, axis=0))
        differences[name] = Difference.between(np.broadcast_to(reference.output(name, x), y.shape), y)
    if rule is not None:
        return Proof(differences, rule)
    if described.precision not in HALVES:
        return Proof(differences, Rule.exact())
    rule, notes = _half_rule(described.precision, reference, pictures, half_factor)
    return Proof(differences, rule, notes)


def _half_rule(precision: str, reference: Reference, pictures: Pictures, factor: float) -> tuple[Rule, list[str]]:
    """The rule for a half precision, and notes.

    Where PyTorch overflows in fp16, an exported model that keeps what overflows in float32 does better than it: its
    yardstick is bf16 then.
    """
    notes = []
    for used in (precision, "bf16"):
        pytorch = Difference()
        for name, x in pictures:
            half = reference.half_output(used, name, x)
            if half is None:
                raise EngineError(
                    f"cannot be judged: the reference has no {used} outputs of PyTorch; "
                    "give the checkpoint or a recording of it as REF, or --max-error"
                )
            pytorch += Difference.between(reference.output(name, x), half)
        if not pytorch.nan:
            return Rule.half(pytorch, used, factor), notes
        notes.append(f"PyTorch itself gives {pytorch.nan} NaN or infinite values in {used}")
    raise EngineError("cannot be judged: PyTorch overflows in half precision; give --max-error")
