"""The steps from a checkpoint to an ONNX file: fold, trace, type, lower, stamp, and prove what was written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

import ribsr
from engines import ort
from engines.base import NotInstalled
from engines.compare import CannotJudge, RunningReference, prove
from engines.metadata import PREFIX, Stamp
from export import OPSETS, READERS, ExportError, Form, lower
from export.precision import CHECK_SIZE, calibrated, check_pictures
from ribsr.base.files import amount, atomic, check_target, sha256
from ribsr.base.progress import Progress
from ribsr.base.sizes import Size

if TYPE_CHECKING:
    from export.fold import FoldedLayer
    from ribsr.layers import RIBModel

QUICK = 2 * 10**9
"""Attention scores up to which a new file is run beside the checkpoint unasked: some ten seconds on two cores."""

DYNAMIC_SIZE = Size(192, 192)
"""At which the scores of a `matmul` file of dynamic size are counted: the small pictures that it is for."""

SCORE_ADVICE = (
    "use --form mha (ONNX Runtime), attention (opset 23) or plugin (TensorRT), a smaller --size or --score-limit"
)
"""What to do where a `matmul` file would need too much memory."""


LARGEST_FILE = 2**31
"""Bytes of an ONNX file: protobuf's limit. Published models take 60 MB at most."""

FOR_NODES = 2**24
"""Of them, those that are left for what is no weight."""


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


def default_name(checkpoint: Path, options: Options) -> Path:
    """`x2.pt` → `x2.onnx`, with what was chosen in between, so that files of other choices stay:
    `x2.mha.640x360.opset20.rib0.01.fp16.onnx`."""
    chosen = {
        options.form: options.form != "canonical",
        str(options.static): options.static is not None,
        f"opset{options.opset}": options.opset not in (None, default_opset(options)),
        f"rib{options.rib_tolerance:g}": options.rib_tolerance > 0,
        "fp16": options.half,
    }
    return Path(".".join([checkpoint.stem, *(name for name, told in chosen.items() if told), "onnx"]))


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
    Raises ExportError, ribsr.CheckpointError (both ValueErrors), EngineError where the new file or the checkpoint
    cannot be run for the proof, and OSError for a file that cannot be written.
    """
    if output.suffix != ".onnx":
        raise ExportError(f"{output}: an ONNX file's name ends in .onnx, by which the engines know what it is")
    check_target(output)
    opset = check_opset(options)
    if options.form == "plugin" and not options.half:
        raise ExportError("--form plugin needs --fp16: TensorRT's plugin computes in half precision")
    if options.form == "plugin" and options.verify:
        raise ExportError("--verify cannot be had with --form plugin: only TensorRT with the plugin runs that file")
    opset = check_opset(options)
    with Progress() as progress:
        _export(checkpoint, output, options, opset, model, config, progress, progress.aside(say))


def _export(
    checkpoint: Path,
    output: Path,
    options: Options,
    opset: int,
    model: str | None,
    config: str | None,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    progress.phase("reading the checkpoint")
    checkpoint = ribsr.bundled.find(checkpoint)
    network = ribsr.load(checkpoint, model=model, config=config)
    say(f"{checkpoint}: {network.config.name} x{network.config.scale}")
    bare = make_graph(network, opset, options, progress, say)
    lowered = lower.lower(bare, options.form)
    stamp(lowered, network, options, sha256(checkpoint))
    onnx.checker.check_model(lowered)
    with atomic(output) as temporary:
        onnx.save_model(lowered, temporary)
        scores = sum(layer.count for layer in lower.attention_scores(bare, options.static or CHECK_SIZE))
        if reason := why_unproved(options, scores):
            say(f"checked as a graph; not run: {reason}")
        else:
            progress.phase("running the file beside the checkpoint", 1)
            say(_prove(temporary, checkpoint, options, model, config, progress))
    nodes, size = len(lowered.graph.node), amount(output.stat().st_size)
    say(f"wrote {output}: {options.form}, opset {opset}, {nodes} nodes, {size}")
    say(f"for {READERS[options.form]}")
    if slow := cost_on_cpu(options):
        say(slow)


def make_graph(
    network: RIBModel, opset: int, options: Options, progress: Progress, say: Callable[[str], None]
) -> onnx.ModelProto:
    """The canonical graph of a network without the operator's body, of the size and in the precision of the options.

    Raises ExportError for a network too large for a file: before the work, unless lower ranks may make it fit.
    """
    from export.canonical import trace
    from export.fold import fold, folded_numbers

    if options.rib_tolerance == 0:
        check_weights(network, folded_numbers(network))
    progress.phase("folding what depends on weights alone", 1)
    folded, layers = fold(network, options.rib_tolerance, progress.reach)
    check_weights(network, sum(value.numel() for value in folded.state_dict().values()))
    tell_folding(layers, say)
    progress.phase("tracing the graph")
    bare = trace(folded, opset)
    if options.static:
        lower.fix_shape(bare, options.static, network.config.scale)
    if options.half:
        progress.phase("measuring activations for float16")
        bare = calibrated(bare, lower.lower(bare, "canonical"), say)
    if options.form == "matmul":
        say(lower.check_scores(bare, options.static or DYNAMIC_SIZE, options.score_limit, SCORE_ADVICE))
    return bare


def check_weights(network: RIBModel, numbers: int) -> None:
    """Raises ExportError where so many numbers in float32, of which float16 is made later, are too many for a file."""
    if (size := 4 * numbers) > LARGEST_FILE - FOR_NODES:
        config = network.config
        raise ExportError(
            f"{config.name} x{config.scale}: its weights come to {size / 2**30:.1f} GiB in float32, and an ONNX file "
            f"holds {LARGEST_FILE / 2**30:.0f}, most of them for positions in windows of {config.windows}; allow "
            "lower ranks with --rib-tolerance, or take a model of smaller windows or ranks"
        )


def cost_on_cpu(options: Options) -> str | None:
    """What ONNX Runtime takes more on a CPU for such a file than for the canonical one in float32; None: nothing.

    Measured with ONNX Runtime 1.32 on two cores, sst-light x2, 160x160.
    """
    if options.form == "attention":
        time = "some 4 times the time" if options.half else "1.6 times the time"
        return (
            f"note: on a CPU, ONNX Runtime takes {time} and many times the memory that a canonical float32 file takes"
        )
    if options.half and options.form != "plugin":
        return "note: half precision is for GPUs; on a CPU, ONNX Runtime is no faster with it (1.2 times the time)"
    return None


def default_opset(options: Options) -> int:
    """The lowest that the form can have."""
    return 23 if options.form == "attention" else OPSETS.start


def check_opset(options: Options) -> int:
    """The opset to write, one of OPSETS. Raises ExportError if the form cannot have the one that is asked for."""
    possible = range(default_opset(options), OPSETS.stop)
    opset = possible.start if options.opset is None else options.opset
    if opset not in possible:
        advice = " to ".join(str(number) for number in sorted({possible[0], possible[-1]}))
        raise ExportError(f"--opset {opset} cannot be had with --form {options.form}; choose {advice}")
    return opset


def stamp(model: onnx.ModelProto, network: RIBModel, options: Options, checkpoint_sha256: str) -> None:
    """Writes into `model` what it says about itself: the fields of `engines.metadata.Stamp`, and the RIB tolerance."""
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


def why_unproved(options: Options, scores: int) -> str | None:
    """Why a file is not run beside the checkpoint on a picture of so many attention scores; None if it is."""
    if options.verify is False:
        return "as asked; tools/parity.py does it later"
    if options.form == "plugin":
        return "only TensorRT with the plugin runs it"
    if options.verify is None and scores > QUICK:
        return f"its {scores / 1e9:.1f}e9 attention scores take long; use --verify or tools/parity.py"
    return None


def _prove(
    path: Path, checkpoint: Path, options: Options, model: str | None, config: str | None, progress: Progress
) -> str:
    """Runs a new file beside its checkpoint in PyTorch, on one sample picture and the CPU; returns what to tell.

    ONNX Runtime's own operators run it as it is: ours would take the place of what was written. Raises ExportError when
    the file computes something else, by the rule of `engines.compare`.
    """
    pictures = [("a sample picture", check_pictures(options.static)[0])]
    try:
        engine = ort.ORTEngine(path, device="cpu", kernels=False)
    except NotInstalled as error:
        if options.verify:
            raise
        return f"checked as a graph; not run: {error}"
    with engine, RunningReference(checkpoint, device="cpu", model=model, config=config) as reference:
        try:
            proof = prove(engine, reference, pictures, reach=progress.reach)
        except CannotJudge as error:
            raise ExportError(f"the new file {error}; nothing was written: use --no-verify to write it") from None
    if proof.failure:
        raise ExportError(
            f"the file differs from the checkpoint on a sample picture: {proof.failure}; nothing was written"
            + (": choose a smaller --rib-tolerance" if options.rib_tolerance else "")
        )
    found = proof.total
    return (
        f"checked in ONNX Runtime on the CPU, on a sample picture: largest error {found.max_error:.1e}, "
        f"rmse {found.rmse:.1e} ({proof.rule.text})"
    )


def tell_folding(layers: list[FoldedLayer], say: Callable[[str], None]) -> None:
    """One line on ranks; with a tolerance, one line per layer whose bias changed."""
    from export.fold import RANK_STEP

    before, after = sum(layer.rank for layer in layers), sum(layer.folded_rank for layer in layers)
    say(
        f"folded {len(layers)} RIBs to the least ranks that suffice, rounded up to multiples of {RANK_STEP} for the "
        f"kernels: {before} → {after} in all"
    )
    for layer in layers:
        if layer.change:
            ranks = f"rank {layer.rank} → {layer.folded_rank}"
            say(f"  {layer.name}: {ranks}, no logit changes by more than {layer.change:.1e}")
