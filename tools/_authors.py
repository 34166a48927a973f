"""The paper authors' PyTorch code as an engine, from a checkout of github dslisleedh/SST; none of it is here."""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import Engine, EngineError
from engines.base import Description, LayerTime, Timer
from tools._common import ModelName, open_model

if TYPE_CHECKING:
    import numpy as np

    from ribsr.configs import Config

AUTHORS = {"cpu": (ModelName("authors"),), "cuda": (ModelName("authors"), ModelName("authors", "fp16"))}
"""Their model as it runs on each device."""

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
        self._model: Any = build_authors(repository, config).eval()
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

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._forward(self._place(x)).float().cpu().numpy()

    def _place(self, x: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(x).to(self._device, self._dtype)

    def _forward(self, x: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self._model(x)

    def timer(self, x: np.ndarray) -> Timer:
        if self._device.type == "cpu":
            return super().timer(x)
        from engines.pytorch import cuda_timer

        placed = self._place(x)
        return cuda_timer(lambda: self._forward(placed), self._device)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        from engines.pytorch import operator_times

        placed = self._place(x)
        return operator_times(lambda: self._forward(placed), self._device, runs)

    def close(self) -> None:
        self._model = None


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
