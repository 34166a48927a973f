"""The check of a new plan: its pictures beside those that ONNX Runtime makes of the same file in float32."""

from __future__ import annotations

from pathlib import Path

from engines import driver, samples
from engines.compare import Proof, Rule, RunningReference, prove
from engines.trt import rtx
from export import ExportError
from export.trt.machine import Machine
from export.trt.source import Options, Shapes, Source
from ribsr.base.sizes import Limits, Size

SIZES = (Size(192, 192), Size(97, 131))
"""Of the pictures, brought into the plan's range: whole windows, and odd sides."""

SCORES = 4 * 10**10
"""Attention scores of a picture up to which the check is made unasked: a minute or two on a few cores."""


def check_verifiable(machine: Machine, options: Options) -> None:
    """Raises ExportError where the check is asked for and there is no GPU here that runs the plan."""
    if options.verify and (missing := _missing(machine)):
        raise ExportError(f"--verify: {missing}; leave it out, and compare it there: tools/parity.py")


def _missing(machine: Machine) -> str | None:
    """Why a plan of this machine cannot run here, if it cannot."""
    if machine.gpu is not None:
        return None
    try:
        capability = driver.capability()
    except driver.NoGPU as error:
        return str(error)
    if rtx.serves(machine.noted, capability):
        return None
    return f"the plan is for compute capability {machine.noted}, the GPU here has {capability}"


def verify(plan: Path, source: Source, machine: Machine, precision: str, shapes: Shapes, options: Options) -> str:
    """Runs the plan beside ONNX Runtime on sample pictures, if that is asked or quick; returns what to tell the user.

    Raises ExportError when the plan computes something else.
    """
    from engines import open_engine
    from export.lower import attention_scores

    if options.verify is False:
        return "not run, as asked: tools/parity.py compares it with other engines"
    if source.stamp.form == "plugin":
        return "not run: only TensorRT runs a file in form 'plugin'; tools/parity.py compares it with other engines"
    if missing := _missing(machine):
        return f"not run: {missing}; tools/parity.py compares it with other engines where there is one that runs it"
    sizes = check_sizes(shapes)
    # (None are known of a flat file, whose pictures are small anyway.)
    scores = [sum(layer.count for layer in attention_scores(source.model, size)) for size in sizes]
    if options.verify is None:
        sizes = [size for size, count in zip(sizes, scores, strict=True) if count <= SCORES]
    if not sizes:
        return f"not run: its {min(scores) / 1e9:.0f}e9 attention scores take long on a CPU; use --verify"
    pictures = [picture for size in sizes for picture in samples.at(size)[:2]]
    # The file itself is what a plan is compared with: not what is made of it for our kernels.
    with (
        open_engine(plan) as engine,
        RunningReference(source.path, device="cpu", runtime="onnxruntime", kernels=False) as reference,
    ):
        proof = prove(engine, reference, pictures, Rule.least_psnr(precision))
    check(proof, precision)
    worst = min(difference.psnr for difference in proof.pictures.values())
    return (
        f"checked against ONNX Runtime on pictures of {', '.join(map(str, sizes))}: PSNR at least {worst:.1f} dB, "
        f"largest error {proof.total.max_error:.1e}"
    )


def check(proof: Proof, precision: str) -> None:
    """Raises ExportError unless each of the pictures keeps to the rule, not only all of them together."""
    for name, difference in proof.pictures.items():
        if (broken := proof.rule.broken_by(difference)) is None:
            continue
        least = "" if difference.nan else f", the least for {precision}"
        advice = "try --bf16 (TensorRT 10 and later) or no half precision"
        if not difference.nan and precision != "fp16":
            advice = "report it"
        raise ExportError(
            f"the plan's pictures are not ONNX Runtime's: on {name} {broken}{least}; nothing was written: {advice}"
        )


def check_sizes(shapes: Shapes) -> list[Size]:
    """SIZES within the profile."""
    return list(dict.fromkeys(map(Limits(shapes[0], shapes[2]).nearest, SIZES)))
