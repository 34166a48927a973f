#!/usr/bin/env python3
"""Our files beside the paper authors' own PyTorch code, in one run: the ratio that their users would see.

    tools/beside_authors.py SST_REPO sst-light x2.onnx --size 128x128 --size 256x256
    tools/beside_authors.py SST_REPO sst-light --device cuda --size 640x360 --json authors.json

SST_REPO is a checkout of github dslisleedh/SST, which needs einops; none of its code is here. Their model runs as they
run it: on a CPU float32 with the attention in bfloat16; on a GPU float32 with TF32, and half precision as a second row.
Weights are random, since only the time counts. Where a plan needs another Python than PyTorch does, time it there with
tools/latency.py --json and put both files into one table with tools/latency.py --merge authors.json plan.json.
"""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines import Engine, EngineError
from engines.base import Description, Timer
from engines.options import engine_options
from ribsr.base.command import Command, SizeType
from ribsr.base.sizes import Size
from tools._common import (
    ModelName,
    console,
    environment,
    environment_line,
    json_option,
    model_name,
    open_model,
    write_json,
)
from tools.latency import DEFAULT_SIZES, measure, report, show, with_ratios

if TYPE_CHECKING:
    from ribsr.configs import Config

AUTHORS = {"cpu": (ModelName("authors"),), "cuda": (ModelName("authors"), ModelName("authors", "fp16"))}
"""Their model as it runs on each device."""

WARMUP = {"cpu": 1, "cuda": 5}
"""Runs before the first that counts: on a GPU cuDNN tries its algorithms first."""

RIB_PARAMETERS = ("to_hidden", "hidden_b", "to_q", "to_k")
"""What their code keeps in float32 whatever the rest is in."""


def import_authors(repository: Path) -> Any:
    """Their SST class. Only the registry's decorator is needed of the training framework around it."""
    if not (repository / "sst" / "archs" / "sst_arch.py").is_file():
        raise EngineError(f"{repository}: not a checkout of github dslisleedh/SST (no sst/archs/sst_arch.py)")
    registry = types.ModuleType("basicsr.utils.registry")
    setattr(registry, "ARCH_REGISTRY", types.SimpleNamespace(register=lambda: lambda cls: cls))  # noqa: B010
    for name in ("basicsr", "basicsr.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["basicsr.utils.registry"] = registry
    package = types.ModuleType("authors_archs")
    package.__path__ = [str(repository / "sst" / "archs")]
    sys.modules["authors_archs"] = package
    try:
        return importlib.import_module("authors_archs.sst_arch").SST
    except ModuleNotFoundError as error:
        raise EngineError(f"their code needs {error.name}, which is not installed: pip install {error.name}") from None


def build_authors(repository: Path, config: Config) -> Any:
    """Their model of a configuration, with random weights."""
    from ribsr.configs import SSTConfig

    if not isinstance(config, SSTConfig):
        raise EngineError(f"{config.name} is not an SST; choose one of theirs, e.g. sst-light")
    return import_authors(repository)(
        dim=config.dim,
        window_sizes=list(config.windows),
        num_heads=list(config.heads),
        ranks=list(config.ranks),
        n_blocks=config.blocks,
        exp_ratio=config.expansion,
        upsampler_type="pixelshuffle_direct" if config.upsampler == "direct" else "pixelshuffle",
        intermediate_dim=config.intermediate_dim,
        upscaling_factor=config.scale,
        attn_type="RIB",
        rib_hidden_dim=config.rib_hidden_dim,
        rib_n_freqs=config.rib_freqs,
        gate_type="DWC",
    )


class AuthorsEngine(Engine):
    """The authors' SST as an engine: `run` takes and gives float32 [B, 3, H, W]."""

    def __init__(self, repository: Path, model: str, scale: int, threads: int | None, device: str, half: bool):
        import torch

        import ribsr

        if threads is not None:
            torch.set_num_threads(threads)
        config = ribsr.config(model, scale)
        self._model = build_authors(repository, config).eval()
        self._device = torch.device(device)
        self._dtype = torch.float16 if half else torch.float32
        self._model = self._model.to(self._device, self._dtype)
        for name, parameter in self._model.named_parameters():
            if name.rsplit(".", 1)[-1] in RIB_PARAMETERS:
                parameter.data = parameter.data.float()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        self._description = Description(
            path="authors",
            runtime="pytorch",
            runtime_version=torch.__version__,
            device="cpu" if device == "cpu" else f"cuda:0 {torch.cuda.get_device_name()}",
            precision="fp16" if half else "fp32" if device == "cpu" else "tf32",
            model=model,
            scale=scale,
            windows=tuple((side, side) for side in config.windows),
            form="authors",
            version="",
            checkpoint_sha256="",
        )

    def describe(self) -> Description:
        return self._description

    def run(self, x: Any) -> Any:
        import torch

        return self._forward(torch.from_numpy(x).to(self._device, self._dtype)).float().cpu().numpy()

    def _forward(self, x: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(x)

    def timer(self, x: Any) -> Timer:
        if self._device.type == "cpu":
            return super().timer(x)
        import torch

        from engines.pytorch import cuda_timer

        placed = torch.from_numpy(x).to(self._device, self._dtype)
        return cuda_timer(lambda: self._forward(placed), self._device)

    def close(self) -> None:
        del self._model


@dataclass(frozen=True)
class Opener:
    """Opens the authors' model under its names, and every other as usual."""

    repository: Path
    model: str
    scale: int
    device: str

    def __call__(self, name: ModelName, options: dict[str, Any]) -> Engine:
        if name in AUTHORS[self.device]:
            half = name.precision == "fp16"
            return AuthorsEngine(self.repository, self.model, self.scale, options["threads"], self.device, half)
        return open_model(name, options)


@click.command(cls=Command)
@click.argument("repository", metavar="SST_REPO", type=click.Path(path_type=Path))
@click.argument("network", metavar="NETWORK")
@click.argument("names", nargs=-1, metavar="[MODEL...]")
@click.option("--scale", type=click.IntRange(2, 4), default=2, show_default=True, help="Of the authors' model.")
@click.option("--size", "sizes", multiple=True, type=SizeType(), help="Of the input (repeatable).  [default: 128x128]")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Timed runs of each model.")
@json_option
@engine_options
@click.pass_context
def main(
    context: click.Context,
    repository: Path,
    network: str,
    names: tuple[str, ...],
    scale: int,
    sizes: tuple[Size, ...],
    rounds: int,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times MODELs beside the authors' PyTorch NETWORK (e.g. sst-light); ratios are to theirs. On the CPU, unless
    --device cuda."""
    out = console(stderr=json_target == "-")
    import_authors(repository)
    device = "cuda" if options["device"] == "cuda" else "cpu"
    models = [*AUTHORS[device], *map(model_name, names)]
    opener = Opener(repository, network, scale, device)
    results = []
    for size in sizes or DEFAULT_SIZES:
        timed = measure(models, size, {**options, "device": device}, rounds, WARMUP[device], opener)
        results += [result.to_json() for result in timed]
    values = report(with_ratios(results), [environment()], [{"rounds": rounds, "threads": options["threads"]}])
    show(out, values["results"])
    out.print(environment_line(values["environments"][0]), style="dim", soft_wrap=True)
    if json_target:
        write_json(json_target, values)
    if any(result["failure"] for result in values["results"]):
        context.exit(1)


if __name__ == "__main__":
    main(prog_name="tools/beside_authors.py")
