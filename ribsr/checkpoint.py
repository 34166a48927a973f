"""Reading and writing checkpoints: own files, the authors' `.pth`, safetensors. Nothing in a file is ever executed."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ribsr import bundled, configs
from ribsr.base.errors import RibsrError, clipped, first_line, shown
from ribsr.base.files import atomic, foreign
from ribsr.base.settings import parse_json
from ribsr.configs import CONFIGS, Config
from ribsr.layers import RIBModel
from ribsr.models import build

FORMAT = 2
"""Version of the own file format: {"ribsr": FORMAT, "params": …}, the configuration among the tensors; in safetensors,
the first is text among the metadata. Version 1, which is read as well, had the configuration beside the tensors, where
programs that take the tensors alone lose it."""

CONFIG_KEY = "ribsr_config"
"""The tensor that holds the configuration: JSON in UTF-8, uint8 [bytes]."""

SCALES = (2, 3, 4)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights in files."""

DAMAGED = (
    pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, LookupError, TypeError,
    AttributeError, struct.error,
)  # fmt: skip
"""What torch.load raises for files that are no checkpoints, or cut short."""


LARGEST_CONFIG = 2**16
"""Bytes of a configuration: 30 times what the published ones take."""

LARGEST_PICKLE = 2**24
"""Bytes that say which tensors a file holds: some 200 a tensor."""


class CheckpointError(RibsrError, ValueError):
    """A checkpoint that cannot be loaded; the message names the file, what is wrong, and the choices."""


def save(model: RIBModel, path: str | Path) -> None:
    """Writes weights and configuration, atomically: safetensors if the name ends so, torch's format otherwise."""
    path = Path(path)
    params = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    params[CONFIG_KEY] = torch.tensor(list(json.dumps(configs.to_dict(model.config)).encode()), dtype=torch.uint8)
    with atomic(path) as temporary:
        if path.suffix == ".safetensors":
            # In two steps: safetensors writes to no folder whose name is not text.
            temporary.write_bytes(to_safetensors(params, {"ribsr": str(FORMAT)}))
        else:
            torch.save({"ribsr": FORMAT, "params": params}, temporary)


def load(path: str | Path, model: str | None = None, config: Config | str | Path | None = None) -> RIBModel:
    """The model of a checkpoint, in float32 and eval mode, on the CPU.

    path: an own file (configuration inside), the authors' `.pth` (`params_ema` before `params`), a bare state dict,
        `.safetensors`, or the name of a bundled checkpoint (see `ribsr.bundled`).
    model: a name in CONFIGS, for files without a configuration; the scale is read off the weights.
    config: instead of `model`, a configuration, own JSON or the authors' option YAML.

    Raises CheckpointError: not a checkpoint, would execute code, no or a wrong configuration, missing or surplus keys,
    wrong shapes. Window sizes cannot be read from weights (sst and sst+ have equal shapes), so nothing is guessed.
    """
    path = bundled.find(path)
    try:
        params, stored = _read(path)
        return _model(path, params, _choose_config(path, params, stored, model, config))
    except configs.ConfigError as error:
        raise CheckpointError(str(error)) from None


def from_tensors(tensors: Mapping[str, Tensor], source: str) -> RIBModel:
    """The model of an own checkpoint's tensors, for programs that read files themselves; as `load` otherwise.

    tensors: those of a file that `save` has written, the configuration among them. source: names them in errors.
    """
    try:
        params, stored = _take_config(source, dict(tensors))
        return _model(source, params, _choose_config(source, params, stored, None, None))
    except configs.ConfigError as error:
        raise CheckpointError(str(error)) from None


def _model(source: Path | str, params: Mapping[str, Tensor], config: Config) -> RIBModel:
    """A model of the configuration with these weights, if they fit."""
    _check_count(source, config, params)
    with torch.device("meta"):
        model = build(config)
    _check_params(source, config, params, model.state_dict())
    model.load_state_dict({key: value.float() for key, value in params.items()}, assign=True)
    return model.eval().requires_grad_(True)


def _read(path: Path) -> tuple[dict[str, Tensor], Config | None]:
    """Tensors and, in own files, the configuration."""
    if not path.is_file():
        names = f"; bundled are {', '.join(bundled.names())}" if bundled.names() and not path.suffix else ""
        raise CheckpointError(f"{path}: no such file{names}")
    if what := foreign(path):
        raise CheckpointError(f"{path}: {what}")
    with path.open("rb") as file:
        head = file.read(9)
    is_safetensors = path.suffix == ".safetensors" or head[8:9] == b"{"  # JSON behind 8 bytes, whatever its name
    content = _read_safetensors(path) if is_safetensors else read_torch(path)
    beside = _config_beside(path, content) if "ribsr" in content else None
    params = next((content[key] for key in ("params_ema", "params") if content.get(key) is not None), content)
    keys = [clipped(key, 40) if isinstance(key, str) else key for key in list(content)[:4]]
    if not isinstance(params, dict) or not params or not all(isinstance(value, Tensor) for value in params.values()):
        raise CheckpointError(
            f"{path}: no weights found; expected 'params_ema', 'params' or a state dict, "
            f"got the keys {', '.join(key if isinstance(key, str) else shown(key) for key in keys) or '(none)'}"
        )
    named, stored = _take_config(path, _by_name(path, params))
    if "ribsr" in content and beside is None and stored is None:
        raise CheckpointError(f"{path}: its configuration is missing")
    return named, beside or stored


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The content of the same checkpoint in torch's format, its configuration as text."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            params = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, *DAMAGED) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, cut short or damaged; copy or download it again ({first_line(error)})"
        ) from None
    return {**{key: metadata[key] for key in ("ribsr", "config") if key in metadata}, "params": params}


def read_torch(path: Path) -> dict[Any, Any]:
    """The dictionary in a file of `torch.save`. Raises CheckpointError for anything else, and for a file that declares
    more than it holds."""
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that it refuses then
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or path.open("rb").read(1) == b"\x80":  # the latter is how every pickle starts
            raise CheckpointError(
                f"{path}: holds more than tensors, so loading it would execute code; refused. "
                "Save its state dict alone, or as safetensors, where you trust it"
            ) from None
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged; copy or download it again") from None
    except (*DAMAGED, OSError, MemoryError, AssertionError) as error:
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint, cut short or damaged; copy or download it again ({first_line(error)})"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    return content


def _check_archive(path: Path) -> None:
    """Raises CheckpointError for a zip file, as torch's are, that is cut short, TorchScript, or no torch file; and for
    one that claims to hold more than its own size, which would fill the memory: torch compresses nothing."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return  # an older format
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (*DAMAGED, OSError, NotImplementedError):
        raise CheckpointError(f"{path}: is cut short or damaged; copy or download it again") from None
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise CheckpointError(f"{path}: is a TorchScript program, not a checkpoint; save its state_dict() instead")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path}: is a zip file, but holds no PyTorch checkpoint; unpack it first")
    size = path.stat().st_size
    if sum(entry.file_size for entry in entries) > size or any(entry.compress_type for entry in entries):
        raise CheckpointError(
            f"{path}: refused: its {size} bytes claim to hold more, as a zip bomb does; no checkpoint is compressed"
        )
    if (longest := max(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))) > LARGEST_PICKLE:
        raise CheckpointError(f"{path}: refused: {longest} bytes describe its tensors; {LARGEST_PICKLE} are possible")


def _config_beside(path: Path, content: Mapping[str, Any]) -> Config | None:
    """The configuration beside the tensors of an own file of version 1, None in those of the present one."""
    version = content["ribsr"] if isinstance(content["ribsr"], str) else shown(content["ribsr"])
    if version not in ("1", str(FORMAT)):
        raise CheckpointError(
            f"{path}: own format {clipped(version, 40)}, this version reads 1 and {FORMAT}; update ribsr"
        )
    return None if version != "1" else _parsed_config(path, content.get("config"))


def _take_config(source: Path | str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Config | None]:
    """The weights, and the configuration that was among them."""
    packed = tensors.pop(CONFIG_KEY, None)
    if packed is None:
        return tensors, None
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() > LARGEST_CONFIG:
        raise CheckpointError(f"{source}: {CONFIG_KEY} is no text; save the model again")
    try:
        text = bytes(packed.tolist()).decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{source}: {CONFIG_KEY} is no text; save the model again") from None
    return tensors, _parsed_config(source, text)


def _parsed_config(source: Path | str, config: Any) -> Config:
    try:
        config = parse_json(config) if isinstance(config, str) else config
    except ValueError as error:
        raise CheckpointError(f"{source}: its configuration is {error}") from None
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{source}: its configuration is missing")
    return configs.from_dict(config, str(source))


def _by_name(path: Path, params: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """The weights without the `module.` that DistributedDataParallel puts before every name."""
    named: dict[str, Tensor] = {}
    for key, value in params.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: the key {shown(key)} is no name of weights; save a state dict")
        name = key.removeprefix("module.")
        if name in named:
            raise CheckpointError(f"{path}: holds {name} twice, once as module.{name}; save one state dict")
        if value.layout != torch.strided or value.is_meta or value.is_quantized:
            kind = "is on the device meta" if value.is_meta else f"is {str(value.layout).removeprefix('torch.')}"
            raise CheckpointError(f"{path}: {name} {kind}: it holds no plain values; save dense tensors")
        named[name] = value
    size = path.stat().st_size
    if sum(value.numel() * value.element_size() for value in named.values()) > size:
        raise CheckpointError(f"{path}: refused: its weights claim to be larger than the whole file, {size} bytes")
    return named


def _choose_config(
    source: Path | str,
    params: Mapping[str, Tensor],
    stored: Config | None,
    model: str | None,
    config: Config | str | Path | None,
) -> Config:
    if model is not None and config is not None:
        raise CheckpointError(f"{source}: give a model name or a configuration, not both")
    asked = configs.read(config) if isinstance(config, (str, Path)) else config
    if model is not None:
        asked = configs.config(model)
        asked = replace(asked, scale=stored.scale if stored else _scale_of(source, asked, params))
    if stored is not None and asked is not None and replace(asked, name=stored.name) != stored:
        raise CheckpointError(
            f"{source}: was made as {_title(stored)}, but {_title(asked)} was asked for; "
            "leave out --model and --config for own checkpoints"
        )
    chosen = stored or asked
    if chosen is None:
        raise CheckpointError(
            f"{source}: does not say which model it is, and window sizes cannot be read from weights; "
            + _choices(params)
        )
    return chosen


def _title(config: Config) -> str:
    return f"{config.name} x{config.scale} (windows {','.join(map(str, config.windows))})"


def _choices(params: Mapping[str, Tensor]) -> str:
    """What to say to a user whose file does not name its model: the published ones that its shapes fit."""
    shapes = {key: value.shape for key, value in params.items()}
    width = next(iter(shapes.get("proj.weight", ())), 0)
    candidates = [configs.config(name, s) for name in CONFIGS for s in SCALES if CONFIGS[name].dim == width]
    with torch.device("meta"):
        made = [(config.name, build(config).state_dict()) for config in candidates]
    fitting = [name for name, state in made if shapes == {key: value.shape for key, value in state.items()}]
    if not fitting:
        return f"it fits none of {', '.join(CONFIGS)}; give its configuration with --config FILE (JSON or option YAML)"
    named = " or ".join(f"--model {name}" for name in fitting)
    return f"its weights fit {' and '.join(fitting)}: give {named} (or --config with the option YAML)"


def _scale_of(source: Path | str, config: Config, params: Mapping[str, Tensor]) -> int:
    """The upscaling factor that the upsampler's last width says."""
    weight = params.get("upsampler.up_conv.weight")
    if weight is None:
        raise CheckpointError(f"{source}: missing key upsampler.up_conv.weight; not weights of {config.name}")
    width, channels = (3 if config.upsampler == "direct" else config.intermediate_dim), next(iter(weight.shape), 0)
    scale = next((s for s in SCALES if width * s * s == channels), None)
    if scale is None:
        raise CheckpointError(
            f"{source}: upsampler.up_conv.weight has {channels} channels, which fits {config.name} at no scale "
            f"({', '.join(f'x{s}: {width * s * s}' for s in SCALES)})"
        )
    return scale


def _check_count(source: Path | str, config: Config, params: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError for a configuration of far more layers than there are weights, before it is built."""
    if (layers := config.blocks * len(config.windows)) > len(params):
        raise CheckpointError(
            f"{source}: {layers} layers of {_title(config)} cannot be made of {len(params)} weights: keys are missing"
        )


def _check_params(
    source: Path | str, config: Config, params: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    title = _title(config)
    if missing := [key for key in expected if key not in params]:
        raise CheckpointError(f"{source}: {len(missing)} keys of {title} are missing, the first is {missing[0]}")
    if surplus := [key for key in params if key not in expected]:
        raise CheckpointError(
            f"{source}: {len(surplus)} keys do not belong to {title}, the first is {clipped(surplus[0])}"
        )
    wrong = [key for key in expected if params[key].shape != expected[key].shape]
    if wrong:
        shapes = [tuple(of[wrong[0]].shape) for of in (params, expected)]
        hint = ""
        if all(key.startswith("upsampler.up_conv") for key in wrong):
            hint = "; the file was trained for another scale than the configuration says"
        raise CheckpointError(f"{source}: {wrong[0]} is {shapes[0]}, {title} needs {shapes[1]}{hint}")
    for key, value in params.items():
        if value.dtype not in DTYPES:
            raise CheckpointError(f"{source}: {key} is {value.dtype}, weights must be floating point of 16 to 64 bits")
        if not torch.isfinite(value).all():
            raise CheckpointError(f"{source}: {key} holds NaN or infinite values; the training run it is from diverged")
