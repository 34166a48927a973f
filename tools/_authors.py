"""Other people's PyTorch networks as engines: the paper authors' SST, and its peers, from checkouts of their code.

None of it is here, and none of their training framework is imported. The weights are random.
"""

from __future__ import annotations

import importlib
import re
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import ribsr
from engines.base import Description, Engine, EngineError, Timer
from engines.pytorch import PyTorchEngine
from ribsr.base.errors import first_line, shown
from ribsr.base.settings import read_settings
from ribsr.base.sizes import Size
from ribsr.configs import Config, SSTConfig
from tools._common import ModelName, open_model

AUTHORS = "authors"
"""What the authors' model is called where files have their paths."""

ROWS = {"cpu": (ModelName(AUTHORS),), "cuda": (ModelName(AUTHORS), ModelName(AUTHORS, "fp16"))}
"""Their model as it runs on each device."""

OPTIONS = (".yml", ".yaml")
"""How the files are called that name a peer: BasicSR's options, whose section network_g says which network it is."""

RIB_PARAMETERS = ("to_hidden", "hidden_b", "to_q", "to_k")
"""What the authors' code keeps in float32 whatever the rest is in."""

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}

_THEIRS = (NameError, TypeError, ValueError, AssertionError, AttributeError, LookupError, ImportError)
"""What other people's code raises where something is missing, or not as it expects."""


def import_authors(repository: Path) -> Any:
    """Their SST class. Only the registry's decorator is needed of the training framework around it."""
    file = repository / "sst" / "archs" / "sst_arch.py"
    if not file.is_file():
        raise EngineError(f"{repository}: not a checkout of github dslisleedh/SST (no sst/archs/sst_arch.py)")
    return _import_network(file, "SST")


def _import_network(file: Path, kind: str) -> Any:
    """The class `kind` of a file in a folder of networks such as BasicSR's. Raises EngineError if it cannot be had."""
    _stand_in_for_basicsr()
    package = f"archs {file.parent.resolve()}".replace(".", "_")  # one for each folder: files import their neighbours
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(file.parent)]
    try:
        return getattr(importlib.import_module(f"{package}.{file.stem}"), kind)
    except ModuleNotFoundError as error:
        advice = ": pip install einops" if error.name == "einops" else ""
        raise EngineError(f"their code needs {error.name}, which is not installed{advice}") from None
    except (ImportError, AttributeError, SyntaxError) as error:
        raise EngineError(f"{file}: has no {kind} that can be imported ({first_line(error)})") from error


def _stand_in_for_basicsr() -> None:
    """What files of networks take of BasicSR, in its place: its own modules import all that training needs."""
    registry = types.SimpleNamespace(register=lambda: lambda cls: cls)
    helpers = {"to_2tuple": _pair, "trunc_normal_": torch.nn.init.trunc_normal_}
    names = ("basicsr", "basicsr.archs", "basicsr.archs.arch_util", "basicsr.utils", "basicsr.utils.registry")
    modules = {name: types.ModuleType(name) for name in names}
    vars(modules["basicsr.archs.arch_util"]).update(helpers)
    vars(modules["basicsr.utils.registry"]).update(ARCH_REGISTRY=registry)
    sys.modules.update(modules)


def _pair(value: Any) -> Any:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


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


@dataclass(frozen=True)
class Network:
    """Somebody's network, and what there is to say of it.

    autocast: half precision is PyTorch's autocast; without, all weights are cast but RIB_PARAMETERS.
    """

    module: Any
    name: str
    scale: int
    form: str
    autocast: bool
    windows: tuple[tuple[int, int], ...] = ()


def authors_network(repository: Path, name: str, scale: int) -> Network:
    """The authors' SST of that name, e.g. sst-light."""
    config = ribsr.config(name, scale)
    windows = tuple((side, side) for side in config.windows)
    return Network(build_authors(repository, config), name, scale, "authors", autocast=False, windows=windows)


def peer_network(options: Path) -> Network:
    """The network of a BasicSR options file, made by the checkout that the file lies in.

    Its class is looked for in `*/archs/*_arch.py` of the folders above the file, the nearest first.
    """
    try:
        values = read_settings(options)
    except ValueError as error:
        raise EngineError(str(error)) from None
    network = values.get("network_g") if isinstance(values, dict) else None
    kind = network.get("type") if isinstance(network, dict) else None
    if not isinstance(network, dict) or not isinstance(kind, str):
        raise EngineError(f"{options}: names no network (network_g with its type); give a BasicSR options file")
    scale = network.get("upscale", values.get("scale"))
    if not isinstance(scale, int):
        raise EngineError(f"{options}: scale must be a whole number, got {shown(scale)}")
    arguments = {name: value for name, value in network.items() if name != "type"}
    try:
        module = _import_network(_find_network(options, kind), kind)(**arguments)
    except _THEIRS as error:
        raise EngineError(f"{options}: {kind} cannot be made ({_told(error)})") from error
    return Network(module, kind, scale, "peer", autocast=True)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _find_network(options: Path, kind: str) -> Path:
    head = re.compile(rf"^class {re.escape(kind)}\b", re.MULTILINE)
    for folder in options.resolve().parents:
        for file in sorted(folder.glob("*/archs/*_arch.py")):
            if head.search(file.read_text(encoding="utf-8", errors="replace")):
                return file
    raise EngineError(f"{options}: no */archs/*_arch.py of the folders above has a class {kind}; is it in a checkout?")


class OthersEngine(PyTorchEngine):
    """A network of `Network` as an engine; `name` is the user's name of it, with its precision.

    Without a precision: float32, on a GPU in TF32. fp32: float32 with PyTorch's own settings, which on a GPU multiply
    matrices in float32 and convolve in TF32.

    It differs in how it opens, so it sets itself all that PyTorchEngine's `__init__` sets.
    """

    def __init__(self, name: ModelName, network: Network, device: str, threads: int | None = None):
        if threads is not None:
            torch.set_num_threads(threads)
        half = _HALVES.get(name.precision or "")
        self._path = name.path
        self._device = torch.device(device)
        self._autocast = half if network.autocast else None
        self._dtype = torch.float32 if half is None or network.autocast else half
        self._model: Any = network.module.eval().requires_grad_(False).to(self._device, self._dtype)
        for parameter_name, parameter in self._model.named_parameters():
            if parameter_name.rsplit(".", 1)[-1] in RIB_PARAMETERS:
                parameter.data = parameter.data.float()
        cuda = self._device.type == "cuda"
        self._tf32 = cuda and name.precision != "fp32"
        precision = name.precision or ("tf32" if cuda else "fp32")
        notes = f"{name}: convolutions in TF32, other products in float32, as PyTorch does unless told otherwise"
        self._description = Description(
            path=self._path,
            runtime="pytorch",
            runtime_version=torch.__version__,
            device=f"cuda:0 {torch.cuda.get_device_name()}" if cuda else "cpu",
            precision=precision,
            model=network.name,
            scale=network.scale,
            windows=network.windows,
            form="autocast" if self._autocast else network.form,
            version="",
            checkpoint_sha256="",
            notes=(notes,) if cuda and precision == "fp32" else (),
        )

    def _forward(self, model: Any, x: torch.Tensor) -> torch.Tensor:
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = self._tf32
        autocast = torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None)
        with torch.inference_mode(), autocast:
            try:
                return model(x)
            except _THEIRS as error:
                raise RuntimeError(_told(error)) from error  # as what PyTorch itself raises

    def timer(self, x: Any) -> Timer:
        """As `Engine.timer`. The memory is without what cuDNN takes while it tries its algorithms, at a first run."""
        if self._device.type == "cuda":
            self.run(x)
        return super().timer(x)

    def needs(self, size: Size, batch: int = 1) -> int | None:
        return None  # nobody has measured


def open_beside(repository: Path, network: str, scale: int, name: ModelName, options: dict[str, Any]) -> Engine:
    """Opens the authors' model and options files of peers, with random weights, and every other model as usual."""
    if name.path != AUTHORS and not name.path.endswith(OPTIONS):
        return open_model(name, options)
    torch.manual_seed(0)
    made = authors_network(repository, network, scale) if name.path == AUTHORS else peer_network(Path(name.path))
    if made.scale != scale:
        raise EngineError(
            f"{name.path}: enlarges by {made.scale}, the authors' model by {scale}: add --scale {made.scale}"
        )
    return OthersEngine(name, made, options["device"], options["threads"])
