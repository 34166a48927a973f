"""Two engines layer by layer: which tensor is the first that leaves the tolerance.

The rule is that of pictures (`engines.compare`), for each layer by itself:
- float32: no value is off by more than MAX_ERROR times the largest value that the layer gives;
- half precision: the root mean square error is at most HALF_FACTOR times that of PyTorch in the same precision at that
  layer, or a rounding of its largest value, where PyTorch happens to be closer than that;
- TF32, which has half precision's mantissa: a few roundings of the largest value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines.base import HALVES, Engine, EngineError
from engines.compare import HALF_FACTOR, MAX_ERROR, finite

if TYPE_CHECKING:
    import numpy as np

ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8, "tf32": 2.0**-11}
"""Of one rounding to a precision, relative to the value."""

TF32_ROUNDINGS = 8

AT_ONCE = 48
"""Layers whose outputs are in memory at a time: some 300 MB for sst-light at 128x128, three times."""


@dataclass(frozen=True)
class LayerDifference:
    """How far a layer's output is off.

    error: the largest, or for half precision the root mean square (measure: max, rmse); limit: what it may be.
    largest: magnitude of the reference's values. nan: NaN and infinite values, none of which are allowed.
    """

    name: str
    error: float
    limit: float
    measure: str
    largest: float
    nan: int = 0

    @property
    def within(self) -> bool:
        return not self.nan and self.error <= self.limit

    def to_json(self) -> dict[str, Any]:
        """The fields; numbers that are not finite are null, as the limit where PyTorch overflows."""
        numbers = {name: finite(getattr(self, name)) for name in ("error", "limit", "largest")}
        return {**vars(self), **numbers, "within": self.within}


def shared_layers(engine: Engine, reference: Engine) -> list[str]:
    """Names of the layers that both engines show, in the engine's order. Raises EngineError where there are none."""
    known = set(reference.layers())
    names = [name for name in engine.layers() if name in known]
    if not [name for name in names if name != "output"]:
        raise EngineError(
            f"{engine.describe().path}: no layer in it has a name of {reference.describe().path}'s modules; export it "
            "again, or compare the file before another tool renamed its weights"
        )
    return names


def compare_layers(
    engine: Engine,
    reference: Engine,
    half: Callable[[str], Engine],
    x: np.ndarray,
    max_error: float = MAX_ERROR,
    half_factor: float = HALF_FACTOR,
) -> Iterator[LayerDifference]:
    """The layers of `engine` beside those of `reference` on x [B, 3, H, W], in the order in which they are computed.

    half: gives PyTorch in a half precision, for the yardstick.
    Layers whose outputs have other shapes, since export has padded heads, are left out.
    Raises EngineError where one of the engines fails or shows no layers.
    """
    precision, names = engine.describe().precision, shared_layers(engine, reference)
    yardstick = half(precision) if precision in HALVES else None
    for start in range(0, len(names), AT_ONCE):
        group = names[start : start + AT_ONCE]
        found, expected = engine.layer_outputs(x, group), reference.layer_outputs(x, group)
        pytorch = {} if yardstick is None else yardstick.layer_outputs(x, group)
        for name in group:
            y, wanted = found[name], expected[name]
            if y.shape == wanted.shape:
                yield _difference(name, y, wanted, pytorch.get(name), precision, max_error, half_factor)


def _difference(
    name: str,
    y: np.ndarray,
    expected: np.ndarray,
    pytorch: np.ndarray | None,
    precision: str,
    max_error: float,
    half_factor: float,
) -> LayerDifference:
    import numpy as np

    good = np.isfinite(y)
    nan, largest = int(y.size - np.count_nonzero(good)), float(np.abs(expected).max())
    error = np.where(good, y, 0).astype(np.float64) - np.where(good, expected, 0)
    if precision not in ROUNDING:
        return LayerDifference(name, float(np.abs(error).max()), max_error * largest, "max", largest, nan)
    rounding = ROUNDING[precision] * largest
    limit = TF32_ROUNDINGS * rounding
    if pytorch is not None:
        theirs = _rmse(pytorch.astype(np.float64) - expected)
        limit = max(half_factor * theirs, rounding) if math.isfinite(theirs) else math.inf
    return LayerDifference(name, _rmse(error), limit, "rmse", largest, nan)


def _rmse(error: np.ndarray) -> float:
    import numpy as np

    return float(np.sqrt(np.mean(np.square(error))))


def first_outside(layers: Sequence[LayerDifference]) -> tuple[LayerDifference | None, str | None]:
    """The first layer that leaves the tolerance, and the name of the one before it; None for neither."""
    before = None
    for layer in layers:
        if not layer.within:
            return layer, before
        before = layer.name
    return None, before
