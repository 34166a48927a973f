"""What an engine really computes in: read from TensorRT's inspector, and held against what was promised.

TensorRT may build something else than it was asked for and say nothing: float32 engines under the name of float16 are
a known failure. The inspector's words differ between versions, so little is relied on: a layer's type, and the element
types of its tensors ("Channel major FP16 format where channel % 8 == 0" in 8.6, "Half" in 10 and 11).

Of an engine with dynamic shapes 8.6 tells no types ("N/A due to dynamic shapes", with an execution context, too).
There the tactic of a convolution or product is asked, whose name begins with the types of its operands
("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_…"), or else the type of its weights, which are stored as they are multiplied;
and a plugin is in half precision: ours take nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engines.trt.versions import TensorRT
from export import ExportError
from export.trt.graph import Graph

HEAVY = re.compile(r"conv|gemm|mat_?mul|matrix_?multiply|mha|attention", re.IGNORECASE)
"""What the type of a layer that does the arithmetic contains: convolutions and matrix products, in all versions."""

TYPES = {"bf16": r"bf16|bfloat16", "fp16": r"fp16|half", "fp32": r"fp32|float"}
"""What their names contain; the first that fits is it."""

TYPE_KEY = re.compile(r"data_?type$", re.I)
"""`Format/Datatype` up to TensorRT 10, a key of its own from 11 on."""

HIDDEN = re.compile(r"dynamic shapes", re.I)
TACTIC = re.compile(r"_(bf16|f16|f32)\1_")
OPERANDS = {"bf16": "bf16", "f16": "fp16", "f32": "fp32"}


class PrecisionError(ExportError):
    """An engine that does not compute in the precision that was promised."""


@dataclass(frozen=True)
class Inspection:
    """An engine's layers: how many there are, and how many plugins and heavy layers compute in which type.

    plugins, heavy: by fp16, bf16, fp32 or `unknown`; plugins also `half`, where it is not told which of the two.
    suspect: the name of the first heavy layer that is in neither half-precision type, or nothing.
    """

    layers: int
    plugins: dict[str, int]
    heavy: dict[str, int]
    suspect: str = ""

    def summary(self) -> dict[str, int]:
        """For the manifest: counts under names such as `plugins fp16`."""
        found = {"layers": self.layers}
        found |= {f"plugins {dtype}": count for dtype, count in self.plugins.items()}
        return found | {f"heavy {dtype}": count for dtype, count in self.heavy.items()}

    def __str__(self) -> str:
        def listed(counts: dict[str, int]) -> str:
            return " + ".join(f"{count} {dtype}" for dtype, count in counts.items()) or "none"

        return f"{self.layers} layers; plugins: {listed(self.plugins)}; convolutions and products: {listed(self.heavy)}"


def check_built(trt: TensorRT, layers: Iterable[dict[str, Any]], graph: Graph) -> Inspection:
    """What an engine of these layers consists of. Raises ExportError if it breaks the promise of its precision."""
    found = inspect(layers)
    if graph.precision != "fp32":
        try:
            check(found, graph.precision, graph.plugins, graph.float32)
        except PrecisionError as error:
            raise ExportError(
                f"TensorRT {trt.version} did not build what --{graph.precision} promises: {error}; nothing was "
                "written: try --optimization-level 5, another form or another TensorRT"
            ) from None
    return found


def inspect(layers: Iterable[dict[str, Any]]) -> Inspection:
    """Counts an engine's layers, as `engines.trt.plan.Plan.layers` gives them.

    A layer computes in the type of its first floating-point input: what a convolution writes may already be converted
    for its reader, what it reads is not.
    """
    total, plugins, heavy, suspect = 0, Counter(), Counter(), ""
    for layer in layers:
        total += 1
        kind, name = str(layer.get("LayerType", "")), str(layer.get("Name", ""))
        if kind.lower().startswith("plugin"):
            plugins["half" if _is_hidden(layer) else _computed_in(layer)] += 1
        elif "mha" in name.lower() if kind == "kgen" else HEAVY.search(f"{kind} {layer.get('ParameterType', '')}"):
            # kgen: generated kernels, element-wise ones, and fused attention under its name.
            dtype = _computed_in_by_kernel(layer) if _is_hidden(layer) else _computed_in(layer)
            heavy[dtype] += 1
            if dtype not in ("fp16", "bf16"):
                suspect = suspect or name
    return Inspection(total, dict(plugins), dict(heavy), suspect)


def check(inspection: Inspection, precision: str, plugins: int, float32: int) -> None:
    """Raises PrecisionError unless the engine keeps the promise of `precision` (fp16 or bf16).

    The rule: at least `plugins` plugin layers, the graph's plugin nodes, all in that type (the graph has one
    half-precision type only, so `half` is it); and of the convolutions and matrix products at most `float32` in another
    type, the number that the graph has in float32 on purpose; and at least one layer of either kind in that type, so
    that an inspector which says nothing proves nothing.
    """
    made = sum(inspection.plugins.values())
    if made < plugins:
        raise PrecisionError(f"the engine has {made} plugin layers where the graph has {plugins}")
    right = inspection.plugins.get(precision, 0) + inspection.plugins.get("half", 0)
    wrong = made - right
    if wrong:
        raise PrecisionError(f"{wrong} of the engine's {made} plugin layers do not compute in {precision}")
    if not right + inspection.heavy.get(precision, 0):
        raise PrecisionError(f"the inspector shows no layer of the engine that computes in {precision}")
    others = sum(inspection.heavy.values()) - inspection.heavy.get(precision, 0)
    if others > float32:
        raise PrecisionError(
            f"{others} of the engine's {sum(inspection.heavy.values())} convolutions and matrix products do not "
            f"compute in {precision}, and the graph accounts for {float32}; the first is {inspection.suspect[:120]}"
        )


def _words(layer: dict[str, Any]) -> list[str]:
    """What the inspector says of the type of each input."""
    tensors = [tensor for tensor in layer.get("Inputs", []) if isinstance(tensor, dict)]
    return [next((str(value) for key, value in tensor.items() if TYPE_KEY.search(key)), "") for tensor in tensors]


def _is_hidden(layer: dict[str, Any]) -> bool:
    return any(HIDDEN.search(words) for words in _words(layer))


def _computed_in(layer: dict[str, Any]) -> str:
    return next(filter(None, map(_type_of, _words(layer))), "unknown")


def _computed_in_by_kernel(layer: dict[str, Any]) -> str:
    if found := TACTIC.search(str(layer.get("TacticName", ""))):
        return OPERANDS[found[1]]
    weights = layer.get("Weights")
    return _type_of(str(weights.get("Type"))) or "unknown" if isinstance(weights, dict) else "unknown"


def _type_of(text: str) -> str:
    """fp16, bf16 or fp32; nothing for integers."""
    return next((dtype for dtype, pattern in TYPES.items() if re.search(pattern, text, re.I)), "")
