"""The manifest beside a plan: what a TensorRT engine was made of, by what and for what. A plan itself says nothing.

`x2.fp16.plan` has `x2.fp16.plan.json`. Needs neither TensorRT nor numpy.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from engines.base import PRECISIONS, EngineError, Stamp
from engines.metadata import stamp_of
from engines.trt.rtx import LATER
from engines.trt.versions import RTX
from ribsr.base.errors import shown
from ribsr.base.files import atomic, sha256
from ribsr.base.settings import checked, read_settings
from ribsr.base.sizes import Size

PLAN, RTX_PLAN = ".plan", ".rtx"
"""What the names of plans end in, for TensorRT and for TensorRT RTX."""

FORMAT = 2
"""Of what is written; it changes when fields change their names or meaning. 1, with other names, is read, too."""


@dataclass(frozen=True)
class Manifest:
    """What `export.trt` knows about the plan it wrote.

    onnx, onnx_sha256: the file that it was built from. tensorrt: the version that built it, and that alone runs it,
    unless it is version_compatible: then later releases of the same major version do, and their lean runtimes; of
    TensorRT RTX `RTX 1.7.1.116`. cuda: the driver's version. gpu, compute_capability: of the card that it was built on,
    e.g. `9.0`. (TensorRT RTX needs none: there the first two are empty, and the last has all that it is for,
    `8.9,12.0`, with a `+` behind them where it is for later ones, too.)
    precision: fp32, fp16 or bf16. form: of the attention: plugin, attention or matmul.
    profile: `min`, `opt` and `max` shape [B, 3, H, W] of the input. plugin: `file` name and `sha256` of the plugin
    library that it needs, or None. stamp: what the ONNX file said of itself. build_seconds: of TensorRT's builder
    alone. layers: how many layers of each kind and precision the engine has.
    """

    plan_sha256: str
    onnx: str
    onnx_sha256: str
    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str
    precision: str
    form: str
    profile: dict[str, list[int]]
    plugin: dict[str, str] | None
    stamp: Stamp
    build_seconds: float
    layers: dict[str, int]
    version_compatible: bool = False

    @property
    def rtx(self) -> bool:
        """Whether TensorRT RTX built it."""
        return self.tensorrt.startswith(RTX)

    def rebuild(self, plan: str | Path, gpu: str | None = None) -> str:
        """The command that makes this plan again. gpu: of TensorRT RTX, another compute capability than it is for."""
        smallest, preferred, largest = (Size(*self.profile[name][2:]) for name in ("min", "opt", "max"))
        sizes = f"--size {preferred}" if smallest == largest else f"--shapes {smallest} {preferred} {largest}"
        options = [] if self.precision == "fp32" else [f"--{self.precision}"]
        if self.rtx:
            chosen = gpu or ("" if self.compute_capability.endswith(LATER) else self.compute_capability)
            options += ["--rtx", *(["--gpu", chosen] if chosen else [])]
        if self.precision != "fp32" and self.plugin is None and self.stamp.form == "canonical":
            options.append("--no-plugin")
        if self.version_compatible:
            options.append("--version-compatible")
        words = [*options, *sizes.split(), "-o", str(plan)]
        return shlex.join(["python", "-m", "export.trt", "--onnx", self.onnx, *words])


def manifest_path(plan: str | Path) -> Path:
    """`x2.fp16.plan` → `x2.fp16.plan.json`."""
    return Path(f"{plan}.json")


def write_manifest(plan: str | Path, manifest: Manifest) -> None:
    """Writes the manifest beside the plan, whole or not at all."""
    with atomic(manifest_path(plan)) as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, **asdict(manifest)}, indent=1) + "\n", encoding="utf-8")


def read_manifest(plan: str | Path) -> Manifest:
    """The manifest of a plan, after checking that it is this plan's.

    Raises EngineError: there is none, it is damaged or of another format, the plan is empty, cut short or another one.
    """
    plan, path = Path(plan), manifest_path(plan)
    try:
        values = read_settings(path)
        if values["format"] not in (1, FORMAT):
            raise EngineError(
                f"{path}: has format {shown(values['format'])}, this toolkit reads 1 and {FORMAT}; build the plan "
                "again: python -m export.trt"
            )
        manifest = _from_json(values)
    except FileNotFoundError:
        raise EngineError(
            f"{plan}: its manifest {path.name} is missing; copy it beside the plan, or build both again: "
            "python -m export.trt"
        ) from None
    except (KeyError, TypeError, ValueError) as error:  # ValueError: also text that is no JSON, or no text
        raise EngineError(
            f"{path}: is damaged ({str(error).removeprefix(f'{path}: ')}); copy it again, or build the plan again: "
            "python -m export.trt"
        ) from None
    if sha256(plan) != manifest.plan_sha256:
        raise EngineError(
            f"{plan}: is not the plan that {path.name} was written for: it is cut short, damaged or another one; copy "
            f"both files again, or rebuild: {manifest.rebuild(plan)}"
        )
    return manifest


def _from_json(values: dict[str, Any]) -> Manifest:
    """Raises KeyError for a field that is missing, ValueError for one that is impossible; it says which."""
    if values["format"] == 1:
        values["form"] = values["lowering"]
    values.setdefault("version_compatible", False)  # older ones do not say so
    known = {field.name: values[field.name] for field in fields(Manifest)}
    try:
        stamp = stamp_of(known["stamp"])
    except KeyError as error:
        raise ValueError(f"stamp: {error.args[0]} is missing") from None
    except ValueError as error:
        raise ValueError(f"stamp: {error}") from None
    manifest = Manifest(**checked(Manifest, {**known, "stamp": stamp}))
    shapes = [manifest.profile[name] for name in ("min", "opt", "max")]
    if not all(len(shape) == 4 and min(shape) >= 1 for shape in shapes):
        raise ValueError("profile: shapes are [B, 3, H, W]")
    if manifest.precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {shown(manifest.precision)}")
    if manifest.plugin is not None and (
        not {"file", "sha256"} <= manifest.plugin.keys()
        or Path(manifest.plugin["file"]).name != manifest.plugin["file"]
    ):
        raise ValueError("plugin: a library has a name, without a folder, and a hash")
    return manifest
