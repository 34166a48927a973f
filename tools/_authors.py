"""The paper authors' own PyTorch code as a model and as an engine: from a checkout of github dslisleedh/SST.

It needs einops; none of it is here.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch

import ribsr
from engines.base import Description, Engine, EngineError
from engines.pytorch import PyTorchEngine
from ribsr.configs import Config, SSTConfig
from tools._common import ModelName, open_model

AUTHORS = {"cpu": (ModelName("authors"),), "cuda": (ModelName("authors"), ModelName("authors", "fp16"))}
"""Their model as it runs on each device."""

RIB_PARAMETERS = ("to_hidden", "hidden_b", "to_q", "to_k")
"""What their code keeps in float32 whatever the rest is in."""


def import_authors(repository: Path) -> Any:
    """Their SST class. Only the registry's decorator is needed of the training framework around it."""
    if not (repository / "sst" / "archs" / "sst_arch.py").is_file():
        raise EngineError(f"{repository}: not a checkout of github dslisleedh/SST (no sst/archs/sst_arch.py)")
    for name in ("basicsr", "basicsr.utils", "basicsr.utils.registry", "authors_archs"):
        sys.modules[name] = types.ModuleType(name)
    registry = types.SimpleNamespace(register=lambda: lambda cls: cls)
    vars(sys.modules["basicsr.utils.registry"])["ARCH_REGISTRY"] = registry
    sys.modules["authors_archs"].__path__ = [str(repository / "sst" / "archs")]
    try:
        return importlib.import_module("authors_archs.sst_arch").SST
    except ModuleNotFoundError as error:
        advice = ": pip install einops" if error.name == "einops" else ""
        raise EngineError(f"their code needs {error.name}, which is not installed{advice}") from None


def build_authors(repository: Path, config: Config) -> Any:
    """Their model of a configuration, with random weights."""
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


class AuthorsEngine(PyTorchEngine):
    """The authors' SST as an engine, with random weights.

    It differs in how it opens, so it sets itself all that PyTorchEngine's `__init__` sets.
    """

    def __init__(self, repository: Path, network: str, scale: int, threads: int | None, device: str, half: bool):
        if threads is not None:
            torch.set_num_threads(threads)
        config = ribsr.config(network, scale)
        self._path = "authors"
        self._device = torch.device(device)
        self._dtype = torch.float16 if half else torch.float32
        self._model: Any = build_authors(repository, config).eval().to(self._device, self._dtype)
        for name, parameter in self._model.named_parameters():
            if name.rsplit(".", 1)[-1] in RIB_PARAMETERS:
                parameter.data = parameter.data.float()
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        self._description = Description(
            path=self._path,
            runtime="pytorch",
            runtime_version=torch.__version__,
            device="cpu" if device == "cpu" else f"cuda:0 {torch.cuda.get_device_name()}",
            precision="fp16" if half else "fp32" if device == "cpu" else "tf32",
            model=network,
            scale=scale,
            windows=tuple((side, side) for side in config.windows),
            form="authors",
            version="",
            checkpoint_sha256="",
        )


def open_beside(repository: Path, network: str, scale: int, name: ModelName, options: dict[str, Any]) -> Engine:
    """Opens the authors' model under its names, and every other as usual."""
    if name not in AUTHORS[options["device"]]:
        return open_model(name, options)
    half = name.precision == "fp16"
    return AuthorsEngine(repository, network, scale, options["threads"], options["device"], half)
