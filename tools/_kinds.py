"""Layers by what they do, whatever a runtime calls them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from engines.base import LayerTime

_KINDS = (
    ("convolutions", r"attention_?inputs"),
    ("feed-forward", r"feed_?forward|gelu|\berf"),
    ("attention", r"attention|fmha|flash|softmax|sdpa"),
    ("norms", r"norm(?!al_)|reducemean|\bmvn\b"),
    ("convolutions", r"conv|depthwise|gemm|mat_?mul|matrixmultiply|gemv|\b(add)?b?mm\b|fullyconnected|cutlass|xmma"),
    (
        "copies",
        r"copy|copies|transpose|permute|reorder|reformat|reshape|cat\b|concat|pad\b|slice|gather|index|expand|broadcast|"
        r"shuffle|depthtospace|memcpy|memset|cast\b|clone|contiguous|roll\b|split|unbind|resize|arrange|tile|_to\b|view|"
        r"squeeze|convert|input_?output|memory",
    ),
)
"""Each kind and what its layers' operators or, where these are not told, names contain; the first that fits is it."""

KINDS = ("attention", "feed-forward", "convolutions", "norms", "copies", "other")


def kind_of(layer: LayerTime) -> str:
    """One of KINDS. What a runtime has fused goes by what its name says first."""
    text = (layer.operator or layer.name).lower()
    if text in ("", "unreadable"):
        text = layer.name.lower()
    return next((kind for kind, pattern in _KINDS if re.search(pattern, text)), "other")


def grouped(layers: Sequence[LayerTime]) -> dict[str, Any]:
    """What --json says of a model's layers, in their order."""
    groups: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for layer in layers:
        groups[kind_of(layer)] += layer.milliseconds
    return {"failure": None, "groups": groups, "layers": [{**vars(layer), "kind": kind_of(layer)} for layer in layers]}
