#!/usr/bin/env python3
"""Our files beside the paper authors' own PyTorch code, in one run: the ratio that their users would see.

    tools/beside_authors.py SST_REPO sst-light x2.onnx --size 128x128 --size 256x256

SST_REPO is a checkout of github dslisleedh/SST, which needs einops; none of its code is here. Their model runs as they
run it: float32, with the attention in bfloat16. Weights are random, since only the time counts.
"""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click

from engines import Engine, EngineError
from engines.base import Description
from engines.cli import Command, engine_options
from tools._common import ModelName, Size, console, environment, environment_line, model_name, open_model, write_json
from tools.latency import measure, report, show, with_ratios

AUTHORS = ModelName("authors")


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
    return importlib.import_module("authors_archs.sst_arch").SST


class AuthorsEngine(Engine):
    """The authors' SST as an engine on the CPU: `run` takes and gives float32 [B, 3, H, W]."""

    def __init__(self, repository: Path, model: str, scale: int, threads: int | None):
        import torch

        import ribsr
        from ribsr.configs import SSTConfig

        if threads is not None:
            torch.set_num_threads(threads)
        config = ribsr.config(model, scale)
        if not isinstance(config, SSTConfig):
            raise EngineError(f"{model} is not an SST; choose one of theirs, e.g. sst-light")
        self._model = import_authors(repository)(
            dim=config.dim,
            window_sizes=list(config.windows),
            num_heads=list(config.heads),
            ranks=list(config.ranks),
            n_blocks=config.blocks,
            exp_ratio=config.expansion,
            upsampler_type="pixelshuffle_direct" if config.upsampler == "direct" else "pixelshuffle",
            intermediate_dim=config.intermediate_dim,
            upscaling_factor=scale,
            attn_type="RIB",
            rib_hidden_dim=config.rib_hidden_dim,
            rib_n_freqs=config.rib_freqs,
            gate_type="DWC",
        ).eval()
        self._description = Description(
            path="authors",
            runtime="pytorch",
            runtime_version=torch.__version__,
            device="cpu",
            precision="fp32",
            model=model,
            scale=scale,
            windows=tuple((side, side) for side in config.windows),
            attention="authors",
            version="",
            checkpoint_sha256="",
        )

    def describe(self) -> Description:
        return self._description

    def run(self, x: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(torch.from_numpy(x)).numpy()

    def close(self) -> None:
        del self._model


@dataclass(frozen=True)
class Opener:
    """Opens the authors' model for the name `authors`, and every other as usual."""

    repository: Path
    model: str
    scale: int

    def __call__(self, name: ModelName, options: dict[str, Any]) -> Engine:
        if name == AUTHORS:
            return AuthorsEngine(self.repository, self.model, self.scale, options["threads"])
        return open_model(name, options)


@click.command(cls=Command)
@click.argument("repository", metavar="SST_REPO", type=click.Path(path_type=Path))
@click.argument("network", metavar="NETWORK")
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.option("--scale", type=click.IntRange(2, 4), default=2, show_default=True, help="Of the authors' model.")
@click.option("--size", "sizes", multiple=True, type=Size(), help="Of the input; may be repeated.  [default: 128x128]")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Timed runs of each model.")
@click.option("--json", "json_target", metavar="FILE", help="Also write the results as JSON; - for stdout.")
@engine_options
def main(
    repository: Path,
    network: str,
    names: tuple[str, ...],
    scale: int,
    sizes: tuple[tuple[int, int], ...],
    rounds: int,
    json_target: str | None,
    **options: Any,
) -> None:
    """Times MODELs beside the authors' PyTorch NETWORK (e.g. sst-light) on the CPU; ratios are to theirs."""
    out = console(stderr=json_target == "-")
    import_authors(repository)
    models = [AUTHORS, *map(model_name, names)]
    results = []
    for size in sizes or ((128, 128),):
        timed = measure(models, size, {**options, "device": "cpu"}, rounds, 1, Opener(repository, network, scale))
        results += [result.to_json() for result in timed]
    values = report(with_ratios(results), [environment()], [{"rounds": rounds, "threads": options["threads"]}])
    show(out, values["results"])
    out.print(environment_line(values["environments"][0]), style="dim", soft_wrap=True)
    if json_target:
        write_json(json_target, values)


if __name__ == "__main__":
    main(prog_name="tools/beside_authors.py")
