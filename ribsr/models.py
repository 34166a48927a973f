"""From a configuration to a model."""

from __future__ import annotations

from ribsr.configs import Config, ESCRIBConfig
from ribsr.escrib import ESCRIB
from ribsr.layers import RIBModel
from ribsr.sst import SST


def build(config: Config) -> RIBModel:
    """A model of the configuration with the authors' initialisation (seed with `torch.manual_seed`), in float32."""
    return ESCRIB(config) if isinstance(config, ESCRIBConfig) else SST(config)
