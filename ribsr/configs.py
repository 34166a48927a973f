"""Configurations: the eight published models in one table, own JSON and the authors' option files. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ribsr.base.errors import RibsrError, clipped, printable, shown
from ribsr.base.settings import check_complete, checked, read_settings

Upsampler = Literal["direct", "pixelshuffle"]


class ConfigError(RibsrError, ValueError):
    """A configuration that cannot be built; the message says which field and what it may be."""


_LARGEST = {"blocks": 1000, "windows": 1024, "scale": 64, "rib_freqs": 64, "pdim": 1024, "kernel_size": 255}
"""Far more than any model has; other sizes may be 65,536. Building what a file asks for must not fill the memory."""

_MOST_LAYERS, _MOST_POSITIONS, _MOST_WEIGHTS = 1000, 2**25, 2**28
"""Of all layers together: their number, the numbers that positions in windows become (which files do not hold), and
roughly the weights. The largest published model has 60, 7 and 30 million."""


@dataclass(frozen=True)
class Config:
    """A network of `blocks` blocks, each with one attention layer per entry of `windows`.

    name: what the model is called in files and messages.
    scale: upscaling factor.
    dim: channels C; every entry of `heads` divides it.
    heads, windows, ranks: per layer of a block: attention heads, side of the square window, width R of the RIB.
    expansion: hidden width of the feed-forward part over `dim`.
    upsampler: `direct` (one convolution to 3·scale² channels) or `pixelshuffle` (through `intermediate_dim` channels).
    """

    name: str
    dim: int
    heads: tuple[int, ...]
    windows: tuple[int, ...]
    ranks: tuple[int, ...]
    blocks: int
    expansion: float
    upsampler: Upsampler
    intermediate_dim: int = 64
    rib_hidden_dim: int = 32
    rib_freqs: int = 10
    scale: int = 2

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\]{1,100}", self.name) or printable(self.name) != self.name or self.name[0] == ".":
            raise ConfigError(f"{shown(self.name)}: name must be one that a file can have, of 100 characters at most")
        for name, value in vars(self).items():
            sizes = value if isinstance(value, tuple) else (value,) if isinstance(value, int) else ()
            least, most = int(name != "rib_freqs"), _LARGEST.get(name, 2**16)
            if not all(least <= size <= most for size in sizes):
                raise ConfigError(f"{self.name}: {name} must be {least} to {most}, got {shown(value)}")
        if not len(self.windows) == len(self.heads) == len(self.ranks) > 0:
            raise ConfigError(
                f"{self.name}: windows, heads and ranks must have one entry per layer and the same length, "
                f"got {len(self.windows)}, {len(self.heads)} and {len(self.ranks)}"
            )
        for heads in self.heads:
            if self.dim % heads:
                raise ConfigError(f"{self.name}: {heads} heads do not divide {self.dim} channels")
        if self.upsampler not in ("direct", "pixelshuffle"):
            raise ConfigError(f"{self.name}: upsampler must be direct or pixelshuffle, got {self.upsampler!r}")
        if not 1 <= self.dim * self.expansion <= 2**20:
            raise ConfigError(f"{self.name}: expansion {self.expansion} makes no hidden channels, or too many")
        self._check_memory()

    def _check_memory(self) -> None:
        """Raises ConfigError for a network so large that making it would fill the memory."""
        layers = self.blocks * len(self.windows)
        positions = self.blocks * sum(side**2 for side in self.windows) * (2 + 4 * self.rib_freqs)
        weights = self.blocks * self.dim**2 * (9 + len(self.windows) * (5 + 2 * self.expansion))
        for many, most, what in (
            (layers, _MOST_LAYERS, f"{self.blocks} blocks of {len(self.windows)} layers"),
            (positions, _MOST_POSITIONS, f"{self.blocks} blocks with windows {clipped(str(self.windows))}"),
            (weights, _MOST_WEIGHTS, f"{layers} layers of {self.dim} channels, expansion {self.expansion}"),
        ):
            if many > most:
                raise ConfigError(f"{self.name}: {what} are {many / most:.1f} times too large for this toolkit")

    @property
    def shifts(self) -> tuple[int, ...]:
        """Cyclic shift of each layer: half a window on odd layers, and only where all windows are equal."""
        equal = len(set(self.windows)) == 1
        return tuple(window // 2 if equal and i % 2 else 0 for i, window in enumerate(self.windows))


class SSTConfig(Config):
    """An SST network."""


@dataclass(frozen=True, kw_only=True)
class ESCRIBConfig(Config):
    """An ESC-RIB network: one attention layer and `conv_blocks` large-kernel layers a block.

    pdim: channels that the shared `kernel_size` x `kernel_size` filter bank works on; the others pass it by.
    """

    pdim: int
    kernel_size: int
    conv_blocks: int
    upsampler: Upsampler = "direct"

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.windows) != 1:
            raise ConfigError(f"{self.name}: ESC-RIB has one attention layer a block: one window, heads and rank")
        if not 1 < self.pdim <= self.dim or self.kernel_size % 2 == 0:
            raise ConfigError(f"{self.name}: pdim must be 2 to dim ({self.dim}) and kernel_size odd")
        bank = (self.pdim * self.kernel_size) ** 2
        if self.blocks * self.conv_blocks > _MOST_LAYERS or bank > _MOST_WEIGHTS:
            raise ConfigError(f"{self.name}: conv_blocks, pdim or kernel_size is too large for this toolkit")


def _sst(
    name: str, dim: int, heads: int, windows: str, ranks: tuple[int, int], blocks: int, expansion: float, middle: int
) -> SSTConfig:
    sides = tuple(int(side) for side in windows.split(","))
    return SSTConfig(
        name=name,
        dim=dim,
        heads=(heads,) * 6,
        windows=sides,
        ranks=(ranks[0],) * 3 + (ranks[1],) * 3,
        blocks=blocks,
        expansion=expansion,
        upsampler="pixelshuffle" if middle else "direct",
        intermediate_dim=middle or 64,
    )


_TABLE: tuple[Config, ...] = (
    #    name         dim  heads windows             ranks     blocks exp   middle channels of the upsampler
    _sst("sst-light", 48, 3, "8,16,32,16,32,64", (16, 24), 5, 1.5, 0),
    _sst("sst-light+", 48, 3, "16,32,48,32,48,96", (16, 24), 5, 1.5, 0),
    _sst("sst", 180, 6, "16,32,64,16,32,64", (18, 34), 6, 1.25, 64),
    _sst("sst+", 180, 6, "16,32,48,32,48,96", (18, 34), 6, 1.25, 64),
    _sst("sst-l", 192, 6, "16,32,64,16,32,64", (16, 32), 8, 2, 96),
    _sst("sst-l+", 192, 6, "16,32,48,32,48,96", (16, 32), 8, 2, 96),
    _sst("sst-xl+", 224, 7, "16,32,48,32,48,96", (16, 32), 10, 2, 96),
    ESCRIBConfig(
        name="esc-rib",
        dim=64,
        pdim=16,
        kernel_size=13,
        heads=(4,),
        windows=(64,),
        ranks=(16,),
        blocks=5,
        conv_blocks=5,
        expansion=1.25,
    ),
)

CONFIGS: Mapping[str, Config] = {entry.name: entry for entry in _TABLE}
"""The published models by name, at scale 2; `config(name, scale)` gives the others."""


def config(name: str, scale: int = 2) -> Config:
    """The published configuration `name` at `scale`; ConfigError names the choices when there is none."""
    if name not in CONFIGS:
        raise ConfigError(f"no model is called {name!r}; choose one of {', '.join(CONFIGS)}")
    return replace(CONFIGS[name], scale=scale)


def to_dict(config: Config) -> dict[str, Any]:
    """The configuration as JSON-ready values; `from_dict` reads it back."""
    return {"architecture": "sst" if isinstance(config, SSTConfig) else "esc-rib", **asdict(config)}


_KINDS = {"sst": SSTConfig, "esc-rib": ESCRIBConfig}


def from_dict(values: Mapping[str, Any], source: str, spelled: Mapping[str, str] | None = None) -> Config:
    """Reads `to_dict`'s form. Raises ConfigError for missing or unknown fields, and for values of other types.

    source, spelled: what errors call the file, and its fields where it has other names for them.
    """
    values = dict(values)
    architecture = values.pop("architecture", None)
    if architecture not in list(_KINDS):
        raise ConfigError(f"{source}: 'architecture' must be sst or esc-rib, got {shown(architecture)}")
    kind = _KINDS[architecture]
    try:
        given = checked(kind, values, spelled)
        check_complete(kind, given)
        return kind(**given)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None


# The authors' option names → ours. What maps to None must have the one value that the published models use.
_AUTHORS = {
    "dim": "dim",
    "pdim": "pdim",
    "kernel_size": "kernel_size",
    "window_sizes": "windows",
    "window_size": "windows",
    "num_heads": "heads",
    "ranks": "ranks",
    "rank": "ranks",
    "n_blocks": "blocks",
    "conv_blocks": "conv_blocks",
    "exp_ratio": "expansion",
    "upsampler_type": "upsampler",
    "intermediate_dim": "intermediate_dim",
    "rib_hidden_dim": "rib_hidden_dim",
    "rib_n_freqs": "rib_freqs",
    "upscaling_factor": "scale",
}
_AUTHORS_FIXED = {"attn_type": "RIB", "gate_type": "DWC", "use_ln": False}


def from_authors(options: Mapping[str, Any], source: str) -> Config:
    """Reads the `network_g` section of the authors' option files (or a dict with their field names).

    options: their constructor's arguments and `type` (SST or ESCRIB). source: names the file in errors.
    """
    options = dict(options)
    kind = options.pop("type", None)
    if kind not in ("SST", "ESCRIB"):
        raise ConfigError(f"{source}: network_g type is {shown(kind)}; SST and ESCRIB are supported")
    for name, value in _AUTHORS_FIXED.items():
        if options.pop(name, value) != value:
            raise ConfigError(f"{source}: {name} must be {value!r}: no other kind is supported")
    if unknown := [name for name in options if name not in _AUTHORS]:
        raise ConfigError(f"{source}: unknown option {shown(unknown[0])} in network_g")
    spelled = {_AUTHORS[name]: name for name in options}
    if twice := [name for name in options if spelled[_AUTHORS[name]] != name]:
        raise ConfigError(f"{source}: {twice[0]} and {spelled[_AUTHORS[twice[0]]]} say the same; leave one out")
    values = {_AUTHORS[name]: value for name, value in options.items()}
    if values.get("upsampler", "pixelshuffle_direct") == "pixelshuffle_direct":
        values["upsampler"] = "direct"
    values.setdefault("rib_hidden_dim", 64)  # their constructors' default, not the published models'
    own = {"architecture": "sst" if kind == "SST" else "esc-rib", "name": "custom", **values}
    parsed = from_dict(own, source, spelled)
    published = (config(name, parsed.scale) for name in CONFIGS)
    return next((known for known in published if replace(known, name="custom") == parsed), parsed)


def read(path: str | Path) -> Config:
    """Reads a configuration file: own JSON (`to_dict`'s form) or the authors' option YAML.

    Raises ConfigError for a file that is neither, OSError for one that cannot be read.
    """
    try:
        values = read_settings(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if Path(path).suffix == ".json":
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: holds no configuration (a JSON object is expected)")
        return from_dict(values, str(path))
    network = values.get("network_g") if isinstance(values, dict) else None
    if not isinstance(network, dict):
        raise ConfigError(f"{path}: has no network_g section; give the authors' option file or own JSON (.json)")
    return from_authors(network, str(path))
