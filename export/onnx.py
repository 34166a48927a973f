"""`python -m export.onnx --ckpt x2.pt` writes x2.onnx: the canonical graph, which ONNX Runtime runs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engines.metadata import PREFIX, Stamp
from export import ExportError
from ribsr.base.command import Command, FiniteRange, SizeType
from ribsr.base.files import atomic, check_target, sha256
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from export.fold import FoldedLayer
    from export.lower import Form
    from export.precision import Report
    from ribsr.layers import RIBModel

QUICK = 2 * 10**9
"""Attention scores up to which a new file is run beside the checkpoint unasked: some ten seconds on two cores."""

TOLERANCE = 1e-4
"""Largest error that a float32 file may have on the check pictures: the rule of tools/parity.py."""

CHECK_SIZE = Size(40, 56)
"""Of the pictures for calibration and for the check of a new file: no multiple of a window, and soon done."""


DYNAMIC_SIZE = Size(192, 192)
"""At which the scores of a `matmul` file of dynamic size are counted: the small pictures that it is for."""


SCORE_ADVICE = (
    "use --attention mha (ONNX Runtime), attention (opset 23) or plugin (TensorRT), a smaller --static or --score-limit"
)
"""What to do where a `matmul` file would need too much memory."""


@dataclass(frozen=True)
class Options:
    """What may be chosen about an export; the command line's options of the same names.

    score_limit: GiB. verify: None runs the new file beside the checkpoint where that is quick.
    """

    form: Form = "canonical"
    half: bool = False
    opset: int | None = None
    static: Size | None = None
    rib_tolerance: float = 0.0
    score_limit: float = 4.0
    verify: bool | None = None


def export_onnx(
    checkpoint: Path,
    output: Path,
    options: Options,
    model: str | None = None,
    config: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the ONNX file of a checkpoint, atomically: nothing is left under `output` unless all of it succeeded.

    model, config: which network an authors' checkpoint holds (see `ribsr.load`). say: is told of each step.
    Raises ExportError, ribsr.CheckpointError (both ValueErrors), and OSError for a file that cannot be written.
    """
    import onnx

    if output.suffix != ".onnx":
        raise ExportError(f"{output}: an ONNX file's name ends in .onnx, by which the engines know what it is")
    check_target(output)
    if options.form == "plugin" and not options.half:
        raise ExportError("--attention plugin needs --fp16: TensorRT's plugin computes in half precision")
    import ribsr
    from export import lower, precision
    from export.canonical import OPSETS, trace
    from export.fold import fold

    opset = check_opset(options, OPSETS)
    checkpoint = ribsr.bundled.find(checkpoint)
    network = ribsr.load(checkpoint, model=model, config=config)
    say(f"{checkpoint}: {network.config.name} x{network.config.scale}")
    folded, layers = fold(network, options.rib_tolerance)
    for line in describe_folding(layers):
        say(line)
    bare = trace(folded, opset)
    if options.static:
        lower.fix_shape(bare, options.static, network.config.scale)
    if options.half:
        magnitudes = precision.measure(lower.lower(bare, "canonical"), check_pictures(options.static))
        bare, report = precision.to_half(bare, magnitudes)
        for line in describe_precision(report):
            say(line)
    if options.form == "matmul":
        size = options.static or DYNAMIC_SIZE
        say(lower.check_scores(bare, size, options.score_limit, SCORE_ADVICE))
    lowered = lower.lower(bare, options.form)
    stamp(lowered, network, options, sha256(checkpoint))
    onnx.checker.check_model(lowered)
    with atomic(output) as temporary:
        onnx.save_model(lowered, temporary)
        scores = sum(layer.count for layer in lower.attention_scores(bare, options.static or CHECK_SIZE))
        say(_verify(temporary, network, options, scores))
    nodes = len(lowered.graph.node)
    size = output.stat().st_size / 2**20
    say(f"wrote {output}: {options.form}, opset {lower.opset_of(lowered)}, {nodes} nodes, {size:.1f} MiB")


def check_opset(options: Options, opsets: range) -> int:
    """The opset to write, one of `opsets`. Raises ExportError if the form cannot have the one that is asked for."""
    possible = range(23 if options.form == "attention" else opsets.start, opsets.stop)
    opset = possible.start if options.opset is None else options.opset
    if opset not in possible:
        advice = " to ".join(str(number) for number in sorted({possible[0], possible[-1]}))
        raise ExportError(f"--opset {opset} cannot be had with --attention {options.form}; choose {advice}")
    return opset


def stamp(model: onnx.ModelProto, network: RIBModel, options: Options, checkpoint_sha256: str) -> None:
    """Writes into `model` what it says about itself: the fields of `engines.metadata.Stamp`, and the RIB tolerance."""
    import ribsr

    config = network.config
    written = Stamp(
        model=config.name,
        scale=config.scale,
        windows=tuple((side, side) for side in config.windows),
        precision="fp16" if options.half else "fp32",
        form=options.form,
        version=ribsr.__version__,
        checkpoint_sha256=checkpoint_sha256,
    )
    del model.metadata_props[:]
    for name, value in {**vars(written), "rib_tolerance": options.rib_tolerance}.items():
        model.metadata_props.add(key=PREFIX + name, value=value if isinstance(value, str) else json.dumps(value))


def check_pictures(static: Size | None) -> list[np.ndarray]:
    """Real pictures [1, 3, H, W], at the file's size if it is fixed."""
    from engines import samples

    return [picture for _, picture in samples.at(static or CHECK_SIZE)]


def _verify(path: Path, network: RIBModel, options: Options, scores: int) -> str:
    """Runs the file beside the PyTorch model on one picture of `scores` attention scores, if that is asked or quick.

    Returns what to tell the user. Raises ExportError when the file computes something else.
    """
    if options.verify is False or (options.verify is None and scores > QUICK):
        why = "as asked" if options.verify is False else f"its {scores / 1e9:.1f}e9 attention scores take long"
        return f"checked as a graph; not run ({why}): use --verify or tools/parity.py"
    if options.form == "plugin":
        return "checked as a graph; not run: only TensorRT with the plugin runs it"
    import numpy as np
    import torch

    from engines.base import EngineError
    from engines.ort import ORTEngine

    try:
        engine = ORTEngine(path, device="cpu")
    except EngineError as error:
        if "not installed" not in str(error):
            raise
        return f"checked as a graph; not run: {error}"
    picture = check_pictures(options.static)[0]
    with engine, torch.inference_mode():
        difference = engine.run(picture) - network(torch.from_numpy(picture)).numpy()
    if not np.isfinite(difference).all():
        raise ExportError("the file gives NaN or infinite values on a sample picture; nothing was written")
    error = float(np.abs(difference).max())
    if not options.half and error > TOLERANCE:
        raise ExportError(
            f"the file differs from the checkpoint by {error:.1e} on a sample picture (allowed: {TOLERANCE:.0e}); "
            "nothing was written" + (": choose a smaller --rib-tolerance" if options.rib_tolerance else "")
        )
    return f"checked in ONNX Runtime on the CPU, on a sample picture: largest error {error:.1e}"


def describe_folding(layers: list[FoldedLayer]) -> list[str]:
    """One line on ranks; with a tolerance, one line per layer whose bias changed."""
    before, after = sum(layer.rank for layer in layers), sum(layer.folded_rank for layer in layers)
    lines = [f"folded {len(layers)} RIBs; sum of their ranks {before} → {after}"]
    lines += [
        f"  {layer.name}: rank {layer.rank} → {layer.folded_rank}, no logit changes by more than {layer.change:.1e}"
        for layer in layers
        if layer.change
    ]
    return lines


def describe_precision(report: Report) -> list[str]:
    """What float16 does to the graph: the largest activation, and what stays in float32."""
    lines = [f"float16: largest activation on the sample pictures {report.largest:.4g} ({report.largest_tensor})"]
    if report.float32_nodes:
        lines.append(
            f"  {len(report.float32_nodes)} of {len(report.float32_nodes) + report.half_nodes} nodes stay in float32 "
            f"to be safe from overflow, the first is {report.float32_nodes[0]}"
        )
    return lines


@click.command(cls=Command)
@click.option(
    "--ckpt",
    required=True,
    type=click.Path(path_type=Path),
    help="Checkpoint: .pt, .pth, .safetensors, or the name of a bundled one.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; default: CKPT's name here.")
@click.option("--model", metavar="NAME", help="Which network an authors' checkpoint holds, e.g. sst-l+.")
@click.option("--config", type=click.Path(), help="Instead of --model: own JSON, or the authors' option YAML.")
@click.option(
    "--attention",
    "form",
    type=click.Choice(["canonical", "mha", "attention", "matmul", "plugin"]),
    default="canonical",
    show_default=True,
    help="Form of the attention: canonical runs in ONNX Runtime as it is and is what export.trt takes; the others are "
    "flat files: mha (ONNX Runtime), attention (opset 23), matmul (basic operators), plugin (TensorRT).",
)
@click.option("--fp16", "half", is_flag=True, help="Type the graph in float16; what would overflow stays in float32.")
@click.option("--opset", type=int, help="ONNX opset, 17 to 23; default 17, 23 for --attention attention.")
@click.option("--static", type=SizeType(), help="Fix batch 1 and this input size.")
@click.option(
    "--rib-tolerance",
    type=FiniteRange(min=0),
    default=0.0,
    show_default=True,
    help="Allow lower RIB ranks that change no attention logit by more than this.",
)
@click.option(
    "--score-limit",
    type=FiniteRange(min=0),
    default=4.0,
    show_default=True,
    metavar="GIB",
    help="Largest score tensor that --attention matmul may make (at 192x192 if the size is dynamic).",
)
@click.option(
    "--verify/--no-verify", default=None, help="Run the file beside the checkpoint; default: where that is quick."
)
def main(ckpt: Path, output: Path | None, model: str | None, config: str | None, **options: object) -> None:
    """Export a checkpoint to ONNX."""
    chosen = Options(**options)  # pyright: ignore[reportArgumentType] (click gives the declared types)
    if output is None:
        suffixes = ["" if chosen.form == "canonical" else f".{chosen.form}", ".fp16" if chosen.half else ""]
        output = Path(ckpt.stem + "".join(suffixes) + ".onnx")
    export_onnx(ckpt, output, chosen, model, config, say=click.echo)


if __name__ == "__main__":
    main()
