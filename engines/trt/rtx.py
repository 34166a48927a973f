"""TensorRT RTX: which GPUs its plans are for. They are built anywhere, and run by `engines.trt.rtx_engine`."""

from __future__ import annotations

from collections.abc import Sequence

from engines import driver
from engines.base import EngineError, release
from engines.trt.versions import TensorRT

LATER = "+"
"""After a compute capability in a manifest: later ones, too."""

CURRENT = "current"
"""Instead of a compute capability: that of the GPU at hand."""

UNASKED = (8, 0)
"""The oldest compute capability that an engine is for where none is asked for."""


def supported(trt: TensorRT) -> list[str]:
    """The compute capabilities that this TensorRT RTX builds for: `8.9` is its SM89, `12.0` its SM120."""
    numbers = [name[2:] for name in trt.module.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]


def choose(trt: TensorRT, asked: Sequence[str]) -> tuple[str, ...]:
    """The compute capabilities to build for, in their order, as the builder takes them; none: all, as it has them.

    asked: `8.9`, or `current`. Raises EngineError for what this TensorRT RTX does not build for.
    """
    known = supported(trt)
    chosen = set()
    for one in asked:
        capability, whose = one, f"compute capability {one}"
        if one == CURRENT:
            try:
                capability = driver.capability()
            except driver.NoGPU as error:
                usual = ",".join(name for name in known if release(name) >= UNASKED)
                raise EngineError(f"--gpu {one}: {error}; name compute capabilities: --gpu {usual}") from None
            whose = f"the GPU here, which has compute capability {capability}"
        if capability not in known:
            raise EngineError(
                f"--gpu {one}: TensorRT {trt.version} does not build for {whose}; it builds for {', '.join(known)}, "
                "and TensorRT itself for the others, each on its own GPU: python -m export.trt without --rtx and --gpu"
            )
        chosen.add(capability)
    return tuple(capability for capability in known if capability in chosen)


def noted(trt: TensorRT, chosen: Sequence[str]) -> str:
    """What a manifest says of `choose`'s result: `8.9,12.0`; where none was asked for, `8.0,8.6,8.9,12.0,12.1+`."""
    if chosen:
        return ",".join(chosen)
    return ",".join(one for one in supported(trt) if release(one) >= UNASKED) + LATER


def serves(capabilities: str, capability: str) -> bool:
    """Whether a plan with these compute capabilities in its manifest is for a GPU of this one."""
    listed = capabilities.removesuffix(LATER).split(",")
    return capability in listed or (capabilities.endswith(LATER) and release(capability) > release(listed[-1]))
