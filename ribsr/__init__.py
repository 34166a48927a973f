"""RIB super-resolution transformers (SST family, arXiv 2603.06738): configurations, models, checkpoints.

`import ribsr` is instant: torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ribsr import bundled
from ribsr.configs import CONFIGS, Config, ESCRIBConfig, SSTConfig, config

if TYPE_CHECKING:
    from ribsr.attention import register_attention, set_attention
    from ribsr.checkpoint import CheckpointError, load, save
    from ribsr.models import build

__version__ = "0.1.0"

__all__ = [
    "CONFIGS",
    "CheckpointError",
    "Config",
    "ESCRIBConfig",
    "SSTConfig",
    "build",
    "bundled",
    "config",
    "load",
    "register_attention",
    "save",
    "set_attention",
]

_LAZY = {
    "CheckpointError": "ribsr.checkpoint",
    "build": "ribsr.models",
    "load": "ribsr.checkpoint",
    "register_attention": "ribsr.attention",
    "save": "ribsr.checkpoint",
    "set_attention": "ribsr.attention",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ribsr' has no attribute {name!r}")
