"""For programs that load models by spandrel: SST and ESC-RIB among its architectures.

    import ribsr.spandrel, spandrel

    ribsr.spandrel.install()
    model = spandrel.ModelLoader().load_from_file("x2.pt")  # ImageModelDescriptor: scale, tiling, model(picture)

Checkpoints that `ribsr.save` writes carry their configuration as a tensor: spandrel shows an architecture nothing but a
file's tensors. The authors' do not, and windows cannot be read from weights (sst and sst+ have the same shapes): these
are refused with the names to choose from. `ribsr.save(ribsr.load("SST_X2.pth", model="sst"), "x2.pt")` makes one that
is not. (The bundled ones and others of the first format are refused likewise, and need no name.)
"""

from __future__ import annotations

from ribsr.base.installation import pip_install
from ribsr.checkpoint import CONFIG_KEY, CheckpointError, from_tensors
from ribsr.configs import ESCRIBConfig
from ribsr.layers import RIBModel

try:
    import spandrel
except ModuleNotFoundError as error:
    if error.name != "spandrel":
        raise
    raise ModuleNotFoundError(f"ribsr.spandrel needs spandrel: {pip_install('spandrel')}", name="spandrel") from None

_FIRST_LAYER = {"SST": "body.0.0.attn", "ESC-RIB": "blocks.0.attn"}
"""Where the first attention layer's weights are in a state dict."""

_RIB = ("to_hidden", "hidden_b", "to_q", "to_k", "to_qkv.weight", "gate.0.weight", "gate.1.weight")
"""Weights of such a layer; the first four are the RIB's."""

_ADVICE = "for spandrel save it with its name inside: ribsr.save(ribsr.load(FILE, model=NAME), NEW_FILE)"


class RIBArchitecture(spandrel.Architecture[RIBModel]):
    """An architecture of this toolkit as spandrel calls it: SST or ESC-RIB."""

    def __init__(self, name: str) -> None:
        keys = [f"{_FIRST_LAYER[name]}.{key}" for key in _RIB]
        super().__init__(id=name, detect=lambda state_dict: all(key in state_dict for key in keys))

    def load(self, state_dict: spandrel.StateDict) -> spandrel.ImageModelDescriptor[RIBModel]:
        """Raises spandrel's UnsupportedModelError where weights do not say which model they are, or do not fit it."""
        try:
            return descriptor(from_tensors(state_dict, "this checkpoint"))
        except CheckpointError as error:
            advice = "" if CONFIG_KEY in state_dict else f"; {_ADVICE}"
            raise spandrel.UnsupportedModelError(f"{error}{advice}") from None


SST, ESC_RIB = (RIBArchitecture(name) for name in _FIRST_LAYER)


def descriptor(model: RIBModel) -> spandrel.ImageModelDescriptor[RIBModel]:
    """A model of this toolkit as spandrel's programs take them, without a file in between.

    It takes pictures of any size, so spandrel pads none. Tiles change what a model computes where it looks at the whole
    picture (ESC-RIB's filters, shifted windows): there `tiling` says that they are discouraged. Half precision leaves
    the RIB's matrices in float32.
    """
    config = model.config
    whole = isinstance(config, ESCRIBConfig) or any(config.shifts)
    return spandrel.ImageModelDescriptor(
        model,
        model.state_dict(),
        architecture=ESC_RIB if isinstance(config, ESCRIBConfig) else SST,
        purpose="SR",
        tags=[config.name, f"windows {','.join(map(str, config.windows))}"],
        supports_half=True,
        supports_bfloat16=True,
        scale=config.scale,
        input_channels=3,
        output_channels=3,
        tiling=spandrel.ModelTiling.DISCOURAGED if whole else spandrel.ModelTiling.SUPPORTED,
    )


def install(
    registry: spandrel.ArchRegistry | None = None, *, ignore_duplicates: bool = False
) -> list[spandrel.ArchSupport]:
    """Adds SST and ESC-RIB to a registry, spandrel's main one by default; returns those that were added.

    ignore_duplicates: keep what is registered under these names, where spandrel raises DuplicateArchitectureError.
    """
    added = map(spandrel.ArchSupport.from_architecture, (SST, ESC_RIB))
    registry = spandrel.MAIN_REGISTRY if registry is None else registry
    return registry.add(*added, ignore_duplicates=ignore_duplicates)
