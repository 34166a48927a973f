"""Training recipes: the paper's for every model and scale, and YAML files that say what differs. No torch here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ribsr import configs
from ribsr.base.errors import RibsrError, shown
from ribsr.base.settings import checked, read_settings
from ribsr.configs import Config

LARGEST_BATCH = 2**24
"""Low-resolution pixels of a step, over all GPUs; the paper's have 2**18."""


class RecipeError(RibsrError, ValueError):
    """A recipe that cannot be followed; the message says which field of which file and what it may be."""


@dataclass(frozen=True)
class Folder:
    """A folder of high-resolution pictures; low: of their low-resolution sides, made on the fly if None."""

    high: str
    low: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How to train one model. Steps are weight updates; sides are pixels of the low-resolution picture.

    model, scale: a name in CONFIGS, or a configuration file (own JSON, the authors' option YAML); the upscaling factor.
    output: folder for weights, state and logs.
    train: where the pictures are. validation: folders of benchmark sets (see `ribsr.benchmark.find_sets`).
    init: finished weights to start from, of the same model at any scale.
    steps, batch (over all GPUs together), crop.
    lr, betas, weight_decay: of AdamW. clip: largest norm of the gradient, None for no limit.
    warmup: steps of linear warm-up. schedule: `multistep` halves lr at each of `milestones`, `cosine` goes to 0.
    ema: decay of the averaged weights, which are what validation and the written model use.
    precision: bf16 (autocast) or fp32. compile: with torch.compile; None: on a GPU alone, since it takes minutes.
    seed: of initial weights and of the choice of crops.
    log_every, validate_every, save_every: steps.
    """

    model: str
    scale: int = 2
    output: str = "run"
    train: tuple[Folder, ...] = ()
    validation: tuple[str, ...] = ()
    init: str | None = None
    steps: int = 500_000
    batch: int = 32
    crop: int = 64
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: int = 20_000
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = (250_000, 400_000, 450_000, 475_000, 490_000)
    ema: float = 0.999
    precision: Literal["bf16", "fp32"] = "bf16"
    compile: bool | None = None
    seed: int = 0
    log_every: int = 100
    validate_every: int = 5_000
    save_every: int = 1_000

    def __post_init__(self) -> None:
        if wrong := list(self._wrong()):
            raise RecipeError("; ".join(wrong))

    def _wrong(self) -> Iterator[str]:
        """A line for each value that is none."""
        for name in ("steps", "batch", "crop", "log_every", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, got {getattr(self, name)}"
        for name in ("seed", "weight_decay"):
            if getattr(self, name) < 0:
                yield f"{name} must not be negative, got {getattr(self, name)}"
        if self.seed >= 2**63:
            yield f"seed must be below 2**63, got {shown(self.seed)}"
        if self.batch * self.crop**2 > LARGEST_BATCH:
            yield f"batch {self.batch} of crop {self.crop} is more than {LARGEST_BATCH} pixels"
        if not 0 <= self.warmup <= self.steps:
            yield f"warmup must be 0 to steps ({self.steps}), got {self.warmup}"
        if not 0 < self.lr < math.inf:
            yield f"lr must be positive, got {self.lr}"
        if not 0 <= self.ema < 1:
            yield f"ema must be 0 to below 1, got {self.ema}"
        if not all(0 <= beta < 1 for beta in self.betas):
            yield f"betas must be 0 to below 1, got {list(self.betas)}"
        if min(self.milestones, default=0) < 0:
            yield f"milestones must not be negative, got {list(self.milestones)}"
        if self.clip is not None and self.clip <= 0:
            yield f"clip must be positive, or null for no limit, got {self.clip}"
        if self.scale not in (2, 3, 4):
            yield f"scale must be 2, 3 or 4, got {self.scale}"
        for name, paths in self._paths().items():
            if "" in paths:
                yield f"{name} must name a path, got an empty text"

    def _paths(self) -> dict[str, list[str | None]]:
        folders = [name for folder in self.train for name in (folder.high, folder.low)]
        return {"output": [self.output], "init": [self.init], "train": folders, "validation": [*self.validation]}

    def network(self) -> Config:
        """The configuration to train. Raises RecipeError when there is none, or its file cannot be read."""
        try:
            if Path(self.model).suffix in (".json", ".yml", ".yaml"):
                return replace(configs.read(self.model), scale=self.scale)
            return configs.config(self.model, self.scale)
        except configs.ConfigError as error:
            raise RecipeError(str(error)) from None
        except OSError as error:
            raise RecipeError(
                f"model {self.model}: {error.strerror}; give a file, or one of {', '.join(configs.CONFIGS)}"
            ) from None

    def learning_rate(self, step: int) -> float:
        """Of the update that follows `step` finished ones."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))
        return self.lr * 0.5 ** sum(step >= milestone for milestone in self.milestones)


def paper(model: str, scale: int) -> Recipe:
    """The paper's recipe (the authors' option files): their 4 GPUs with 8 crops each, 16 for the light models.

    x3 and x4 start from the finished weights of the scale below (`init`), for half as long at half the rate.
    The crop holds the largest window.
    """
    recipe = Recipe(model, scale)
    network = recipe.network()
    batch = 64 if network.upsampler == "direct" else 32
    recipe = replace(recipe, batch=batch, crop=max(64, *network.windows))
    if scale == 2:
        return recipe
    halved = tuple(milestone // 2 for milestone in recipe.milestones)
    return replace(recipe, steps=recipe.steps // 2, lr=recipe.lr / 2, milestones=halved)


def read(path: str | Path) -> Recipe:
    """The recipe of a YAML file: `model`, `scale`, and whatever differs from the paper's recipe for them.

    Raises RecipeError for a file that says something else, OSError for one that cannot be read.
    """
    try:
        values = read_settings(path)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(values, dict) or "model" not in values:
        raise RecipeError(f"{path}: holds no recipe; python -m ribsr recipe sst-light writes one to start from")
    return from_dict(values, str(path))


def from_dict(values: Mapping[str, Any], source: str) -> Recipe:
    """The recipe of `to_dict`'s form, with the paper's values for what is left out; `source` stands in errors."""
    try:
        folders = values.get("train", [])
        train = tuple(_folder(entry) for entry in (folders if isinstance(folders, (list, tuple)) else [folders]))
        given = checked(Recipe, {**values, "train": train})
        return replace(paper(given["model"], given.get("scale", 2)), **given)
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from None


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain lists, numbers and strings, for YAML."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(recipe).items()}
    values["train"] = [asdict(folder) if folder.low else folder.high for folder in recipe.train]
    return values


def _folder(entry: Any) -> Folder:
    values = entry if isinstance(entry, dict) else {"high": entry}
    try:
        return Folder(**checked(Folder, values))
    except (TypeError, ValueError):
        raise RecipeError(
            f"train must list folders, or pairs of them as {{high: DIR, low: DIR}}, got {shown(entry)}"
        ) from None
