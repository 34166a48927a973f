"""`python -m export.trt` as a user types it, with TensorRT and the GPU played by fakes made of recorded surfaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

import ribsr
from engines import EngineError
from engines.trt import gpu as cuda
from engines.trt import versions as api
from ribsr.base.files import sha256
from engines.metadata import read_stamp
from engines.ort import ORTEngine
from export import fuse
from export.trt import build as trt_build
from export import trt as command
from export.onnx import Options as ONNXOptions
from export.onnx import export_onnx
from plugins import compiler, library, operators
from tests.engines.trt.tensorrt_fake import VERSIONS, Memory, fake_tensorrt
from tests.export.test_inspection import NEW, OLD, layer

ROOT = Path(__file__).resolve().parents[2]
OLDEST, TEN, ELEVEN = VERSIONS


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Path:
    """A folder with files of a small model in several forms."""
    folder = tmp_path_factory.mktemp("onnx")
    torch.manual_seed(0)
    small = replace(
        ribsr.config("sst-light"), name="small", dim=24, heads=(2, 2), windows=(8, 12), ranks=(8, 18), blocks=1
    )
    ribsr.save(ribsr.build(small), folder / "x2.pt")
    wide = replace(ribsr.config("sst-l"), name="wide", heads=(6,), windows=(8,), ranks=(16,), blocks=1)
    ribsr.save(ribsr.build(wide), folder / "wide.pt")
    for name, options in {
        "x2": ONNXOptions(),
        "x2.fp16": ONNXOptions(half=True),
        "x2.23": ONNXOptions(opset=23),
        "x2.mha": ONNXOptions(form="mha"),
        "x2.matmul.fp16": ONNXOptions(form="matmul", half=True),
        "x2.plugin.fp16": ONNXOptions(form="plugin", half=True),
        "x2.attention": ONNXOptions(form="attention"),
        "x2.static": ONNXOptions(static=(24, 40)),
        "wide.fp16": ONNXOptions(half=True),
        "wide.plugin.fp16": ONNXOptions(form="plugin", half=True),
    }.items():
        export_onnx(folder / f"{name.partition('.')[0]}.pt", folder / f"{name}.onnx", replace(options, verify=False))
    return folder


class FakeGPU(SimpleNamespace):
    """What the commands see of the machine: TensorRT, a GPU, the plugin library, and an engine that runs plans."""

    trt: Any
    parsed: onnx.ModelProto
    precision: str = "fp16"
    error: float = 1e-3
    broken: dict[str, str]


def words(gpu: FakeGPU, dtype: str) -> str:
    return OLD[dtype] if gpu.trt.__version__.startswith("8.") else NEW[dtype]


def timing_cache(data: bytes) -> SimpleNamespace:
    """One that serialises to the data it was made of."""
    return SimpleNamespace(serialize=lambda: Memory(data))


def layers_of(gpu: FakeGPU) -> list[dict[str, Any]]:
    """The inspector's description of an engine that does just what the graph says, but for what is `broken`."""
    single = {t.name for t in gpu.parsed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    half = "bf16" if any(t.data_type == onnx.TensorProto.BFLOAT16 for t in gpu.parsed.graph.initializer) else "fp16"
    plugin = "PluginV2" if gpu.trt.__version__.startswith("8.") else "PluginV3"
    found = []
    for node in gpu.parsed.graph.node:
        kind = {"Conv": "CaskConvolution", "MatMul": "gemm"}.get(node.op_type, plugin if node.domain else "")
        kind = gpu.broken.get(f"kind {node.op_type}", kind)
        if kind:
            dtype = "fp32" if single & set(node.input) else half
            found.append(layer(kind, words(gpu, gpu.broken.get(node.op_type, dtype)), name=node.name))
    return found


@pytest.fixture
def here(tmp_path, monkeypatch, files) -> Path:
    """The working directory, with x2.onnx in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "x2.onnx").write_bytes((files / "x2.onnx").read_bytes())
    return tmp_path


@pytest.fixture(params=VERSIONS)
def gpu(request, here, monkeypatch) -> FakeGPU:
    return make_gpu(request.param, here, monkeypatch)


def make_gpu(version: str, here: Path, monkeypatch) -> FakeGPU:
    gpu = FakeGPU(broken={}, error=1e-3)

    def parse(self: Any, model: bytes) -> bool:
        gpu.parsed = onnx.load_model_from_string(model)
        return True

    memory = "device_memory_size" if version == OLDEST else "device_memory_size_v2"
    gpu.trt = fake_tensorrt(
        version,
        {
            "OnnxParser.parse": parse,
            "INetworkDefinition.num_layers": 0,
            "INetworkDefinition.num_inputs": 0,
            "Builder.build_serialized_network": lambda self, network, config: Memory(b"plan " * 1000),
            "ITimingCache.serialize": lambda self: Memory(b"timings"),
            "IBuilderConfig.create_timing_cache": lambda self, data: timing_cache(data),
            "ICudaEngine.num_layers": lambda self: len(layers_of(gpu)),
            f"ICudaEngine.{memory}": 64 << 20,
            "EngineInspector.get_layer_information": lambda self, index, form: json.dumps(layers_of(gpu)[index]),
        },
    )
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.trt)
    (here / "lib").mkdir()
    (here / "lib" / "plugins.so").write_bytes(b"machine code")
    monkeypatch.setenv(library.TENSORRT_VARIABLE, str(here / "lib" / "plugins.so"))
    gpu.loaded = []
    monkeypatch.setattr(library, "load_tensorrt", lambda trt, path: gpu.loaded.append(path))
    device = cuda.GPU(0, "NVIDIA H100 80GB", "9.0", "13.0")
    monkeypatch.setattr(cuda, "current_gpu", lambda: device)

    class PlayedEngine(ORTEngine):
        """Runs a plan as its ONNX file in ONNX Runtime, somewhat wrong."""

        def __init__(self, plan: Path):
            assert Path(plan).read_bytes().startswith(b"plan")
            super().__init__(here / "x2.onnx", device="cpu")

        def run(self, x: np.ndarray) -> np.ndarray:
            return super().run(x) + np.float32(gpu.error)

    played: Any = ModuleType("engines.trt")
    played.TensorRTEngine = PlayedEngine
    monkeypatch.setitem(sys.modules, "engines.trt", played)
    return gpu


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command.main, arguments)


def written(folder: Path) -> list[str]:
    """What is there besides the fixtures' own files."""
    return sorted(path.name for path in folder.iterdir() if path.name not in ("x2.onnx", "lib", "cache"))


def failed(result: Result, here: Path) -> str:
    """The one line of a failure that has left nothing."""
    assert result.exit_code == 1, result.output
    (line,) = (line for line in result.output.splitlines() if line.startswith("Error: "))
    assert "Traceback" not in result.output
    assert written(here) == []
    return line


def test_the_command_as_the_readme_gives_it(gpu, here):
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert written(here) == ["x2.fp16.plan", "x2.fp16.plan.json"]
    assert Path("x2.fp16.plan").read_bytes() == b"plan " * 1000
    manifest = json.loads(Path("x2.fp16.plan.json").read_text())
    counts = {key: manifest["layers"][key] for key in ("plugins fp16", "heavy fp16")}
    assert counts == {"plugins fp16": 2 + 5 + 4, "heavy fp16": 14}
    stamp = read_stamp("x2.onnx")
    expected = {
        "plan_sha256": sha256("x2.fp16.plan"),
        "onnx": "x2.onnx",
        "onnx_sha256": sha256("x2.onnx"),
        "tensorrt": gpu.trt.__version__,
        "cuda": "13.0",
        "gpu": "NVIDIA H100 80GB",
        "compute_capability": "9.0",
        "precision": "fp16",
        "lowering": "plugin",
        "profile": {"min": [1, 3, 64, 64], "opt": [1, 3, 360, 640], "max": [1, 3, 720, 1280]},
        "plugin": {"file": "plugins.so", "sha256": sha256("lib/plugins.so")},
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["stamp"] == {**vars(stamp), "windows": [list(window) for window in stamp.windows]}
    for words in (
        f"TensorRT {gpu.trt.__version__} on NVIDIA H100",
        "PSNR at least 60.0 dB",
        "wrote x2.fp16.plan: plugin",
    ):
        assert words in result.output
    assert fuse.count(gpu.parsed)["CyclicWindowAttention"] == 2
    assert not gpu.parsed.functions
    assert [entry.domain for entry in gpu.parsed.opset_import] == ["", "ribsr"]


@pytest.mark.parametrize(
    ("version", "arguments", "file", "form", "precision", "said"),
    [
        (OLDEST, ["--size", "48x32"], "x2", "matmul", "fp32", "the plugin computes in half precision (--fp16)"),
        (TEN, ["--size", "48x32"], "x2", "matmul", "fp32", "the plugin computes in half precision (--fp16)"),
        (TEN, [], "x2.23", "attention", "fp32", "form 'attention' instead of the plugin"),
        (TEN, ["--bf16"], "x2", "plugin", "bf16", "wrote"),
        (ELEVEN, ["--bf16"], "x2.23", "plugin", "bf16", "wrote"),
        (ELEVEN, ["--fp16", "--no-plugin"], "x2.23", "attention", "fp16", "--no-plugin was given"),
        (OLDEST, ["--fp16", "--no-plugin", "--size", "48x32"], "x2", "matmul", "fp16", "largest score tensor"),
        (OLDEST, [], "x2.fp16", "plugin", "fp16", "wrote x2.fp16.plan"),
        (OLDEST, ["--fp16"], "x2.plugin.fp16", "plugin", "fp16", "not run: only TensorRT runs a file in form"),
        (OLDEST, [], "x2.matmul.fp16", "matmul", "fp16", "wrote x2.matmul.fp16.plan"),
        (ELEVEN, [], "x2.attention", "attention", "fp32", "wrote x2.attention.fp32.plan"),
        (TEN, ["--fp16"], "x2.static", "plugin", "fp16", "pictures 40x24"),
    ],
)
def test_form_and_precision(here, monkeypatch, files, version, arguments, file, form, precision, said):
    gpu = make_gpu(version, here, monkeypatch)
    gpu.error = 1e-4
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    (here / "x2.onnx").rename(here / f"{file}.onnx")
    monkeypatch.setattr(command, "verify", lambda *args, verify=command.verify: rerouted(verify, here, files, args))
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert said in result.output
    (plan,) = here.glob("*.plan")
    manifest = json.loads(Path(f"{plan}.json").read_text())
    assert (manifest["lowering"], manifest["precision"]) == (form, precision)
    assert bool(manifest["plugin"]) == (form == "plugin") == bool(gpu.loaded)
    flags = [args[0].name for name, args in gpu.trt.calls if name == "IBuilderConfig.set_flag"]
    assert ("FP16" in flags) == (version == OLDEST and precision == "fp16")
    ops = {node.op_type for node in gpu.parsed.graph.node}
    assert ("Softmax" in ops, "Attention" in ops) == (form == "matmul", form == "attention")
    dims = [dim.dim_value or dim.dim_param for dim in gpu.parsed.graph.input[0].type.tensor_type.shape.dim]
    static = file == "x2.static" or "--size" in arguments
    assert dims == [1, 3, *(manifest["profile"]["max"][2:] if static else ["height", "width"])]


@pytest.mark.parametrize(("capability", "whole"), [("9.0", 1), ("8.9", 0), ("10.0", 0)])
@pytest.mark.parametrize("file", ["wide.fp16", "wide.plugin.fp16"])
def test_wide_layers_become_one_node_for_hopper_alone(here, monkeypatch, files, file, capability, whole):
    """Also those of a file in form `plugin`, which says nothing of the GPU."""
    gpu = make_gpu(TEN, here, monkeypatch)
    device = cuda.GPU(0, "NVIDIA", capability, "13.0")
    monkeypatch.setattr(cuda, "current_gpu", lambda: device)
    result = invoke("--onnx", str(files / f"{file}.onnx"), "--no-verify")
    assert result.exit_code == 0, result.output
    count = fuse.count(gpu.parsed)
    assert (count[operators.FEED_FORWARD.name], count[operators.ATTENTION_INPUTS.name]) == (whole, whole)
    assert count["DepthwiseConv3x3"] == 2 - 2 * whole
    (plan,) = here.glob("*.plan.json")
    assert json.loads(plan.read_text())["layers"]["plugins fp16"] == sum(count.values())


def rerouted(verify: Any, here: Path, files: Path, args: tuple) -> str:
    """The played engine reads x2.onnx whatever the plan's file is."""
    (here / "x2.onnx").write_bytes((files / ("x2.static.onnx" if args[1].static else "x2.onnx")).read_bytes())
    try:
        return verify(*args)
    finally:
        (here / "x2.onnx").unlink()


@pytest.mark.parametrize(
    ("version", "arguments", "file", "message"),
    [
        (OLDEST, ["--bf16"], "x2", "--bf16 needs TensorRT 10 or later, this is 8.6.0; use --fp16"),
        (TEN, ["--bf16"], "x2.fp16", "is in fp16 and form 'canonical', which leaves no choice"),
        (OLDEST, ["--fp16"], "x2.23", "has opset 23, TensorRT 8.6.0 reads 17; export without --opset"),
        (OLDEST, [], "x2.attention", "opset 23"),
        (TEN, ["--fp16"], "x2.mha", "is in form 'mha', which only ONNX Runtime runs"),
        (TEN, ["--fp16"], "x2.attention", "which leaves no choice of precision; for fp16 take the canonical"),
        (TEN, ["--no-plugin"], "x2.plugin.fp16", "for --no-plugin export it without --attention"),
        (TEN, ["--fp16", "--size", "64x64"], "x2.static", "takes pictures of 40x24 only"),
        (
            TEN,
            ["--fp16", "--no-plugin", "--score-limit", "0.1"],
            "x2",
            "the limit is 0.1 GiB: use --fp16 with the plugin",
        ),
        (TEN, ["--fp16", "--shapes", "64x64", "32x32", "128x128"], "x2", "must not shrink from MIN over OPT to MAX"),
        (TEN, ["--fp16", "-o", "nowhere/x2.plan"], "x2", "there is no folder nowhere"),
        (TEN, ["--fp16", "-o", "x2.onnx"], "x2", "x2.onnx: a plan's name ends in .plan"),
        (TEN, ["--fp16", "--onnx", "missing.onnx"], "x2", "missing.onnx: no such file"),
        (TEN, ["--fp16", "--timing-cache", "nowhere/cache"], "x2", "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_had_is_one_line(here, monkeypatch, files, version, arguments, file, message):
    make_gpu(version, here, monkeypatch)
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    assert message in failed(invoke(*arguments), here)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fp16", "--bf16"], "--fp16 and --bf16 exclude each other"),
        (["--onnx", "a.onnx", "--ckpt", "a.pt"], "--onnx and --ckpt exclude each other"),
        (["--size", "8x8", "--shapes", "8x8", "8x8", "8x8"], "--shapes and --size exclude each other"),
        (["--size", "640"], "is not WIDTHxHEIGHT"),
        (["--shapes", "8x8"], "requires 3 arguments"),
        (["--model", "sst-light"], "they need --ckpt"),
    ],
)
def test_usage(here, arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_several_files_to_choose_from_are_listed(gpu, here, files):
    (here / "x3.onnx").write_bytes((files / "x2.mha.onnx").read_bytes())
    result = invoke("--fp16")
    assert result.exit_code == 1
    assert "2 ONNX files to choose from: x2.onnx, x3.onnx; name one with --onnx" in result.output
    assert invoke("--fp16", "--onnx", "x2.onnx").exit_code == 0


def test_files_of_other_tools_are_none_of_ours(gpu, here):
    stranger = onnx.load("x2.onnx")
    del stranger.metadata_props[:]
    onnx.save_model(stranger, "theirs.onnx")
    assert invoke("--fp16").exit_code == 0
    Path("x2.onnx").unlink()
    result = invoke("--fp16")
    assert result.exit_code == 1
    assert "there is no ONNX file of this toolkit here (not theirs.onnx: of another tool, or damaged)" in result.output
    assert "was made by another tool" in invoke("--onnx", "theirs.onnx").output


def test_damaged_file(gpu, here):
    content = Path("x2.onnx").read_bytes()
    Path("x2.onnx").write_bytes(content[: len(content) // 2])
    assert "not an ONNX file, or cut short" in failed(invoke("--fp16", "--onnx", "x2.onnx"), here)


def test_from_the_checkpoint(gpu, here, files):
    Path("x2.onnx").unlink()
    Path("x2.pt").write_bytes((files / "x2.pt").read_bytes())
    result = invoke("--ckpt", "x2.pt", "--fp16")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in here.glob("x2*")) == ["x2.fp16.plan", "x2.fp16.plan.json", "x2.onnx", "x2.pt"]


def test_a_folder_is_no_name_for_a_plan(gpu, here):
    Path("x2.plan").mkdir()
    result = invoke("--fp16", "-o", "x2.plan")
    assert (result.exit_code, result.output) == (1, "Error: x2.plan: is a folder; name a file\n")


def test_a_checkpoint_is_exported_only_where_a_plan_can_be_built(gpu, here, files, monkeypatch):
    Path("x2.onnx").unlink()
    Path("x2.pt").write_bytes((files / "x2.pt").read_bytes())
    assert "ends in .plan" in invoke("--ckpt", "x2.pt", "--fp16", "-o", "x2.engine").output

    def missing() -> None:
        raise EngineError("TensorRT for Python is not installed")

    monkeypatch.setattr(api, "import_tensorrt", missing)
    result = invoke("--ckpt", "x2.pt", "--fp16")
    assert (result.exit_code, result.output) == (1, "Error: TensorRT for Python is not installed\n")
    assert [path.name for path in here.glob("x2*")] == ["x2.pt"]


def test_from_an_authors_checkpoint_that_does_not_say_which_model_it_is(gpu, here, monkeypatch):
    """What the message advises can be done with this command, too."""
    Path("x2.onnx").unlink()
    torch.save({"params": ribsr.build(ribsr.config("sst-light")).state_dict()}, "theirs.pth")
    advice = "give --model sst-light or --model sst-light+ (or --config"
    assert advice in invoke("--ckpt", "theirs.pth", "--fp16").output
    given = []
    monkeypatch.setattr("export.onnx.export_onnx", lambda *arguments, **_: given.append(arguments[3:5]))
    invoke("--ckpt", "theirs.pth", "--fp16", "--model", "sst-light")
    invoke("--ckpt", "theirs.pth", "--fp16", "--config", "theirs.yml")
    assert given == [("sst-light", None), (None, "theirs.yml")]


def test_library_is_built_where_headers_are(gpu, here, monkeypatch):
    monkeypatch.delenv(library.TENSORRT_VARIABLE)
    path = here / "lib" / "built.so"
    monkeypatch.setattr(library, "tensorrt_path", lambda major: path)
    major = int(gpu.trt.__version__.split(".")[0])
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: {major: Path("headers")})
    monkeypatch.setattr(compiler, "build_tensorrt", lambda include: path.write_bytes(b"new"))
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert f"building {path} with the headers in headers" in result.output
    assert gpu.loaded == [path]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (False, "is not built and there are no headers of TensorRT"),
        (True, "cannot be built: nvcc not found"),
    ],
)
def test_without_a_library_another_form_is_taken_and_said(gpu, here, monkeypatch, headers, said):
    monkeypatch.delenv(library.TENSORRT_VARIABLE)
    monkeypatch.setattr(library, "tensorrt_path", lambda major: here / "lib" / "none.so")
    major = int(gpu.trt.__version__.split(".")[0])
    monkeypatch.setattr(compiler, "find_tensorrt", lambda: {major: Path("headers")} if headers else {})

    def fails(include: Path) -> None:
        raise compiler.BuildError("nvcc not found")

    monkeypatch.setattr(compiler, "build_tensorrt", fails)
    result = invoke("--fp16", "--size", "48x32")
    assert result.exit_code == 0, result.output
    assert "form 'matmul' instead of the plugin" in result.output
    assert said in result.output


def test_named_library_that_does_not_work_is_an_error(gpu, here, monkeypatch):
    def wrong(trt: Any, path: Path) -> None:
        raise library.LibraryError(f"{path} was built for another TensorRT")

    monkeypatch.setattr(library, "load_tensorrt", wrong)
    assert "was built for another TensorRT" in failed(invoke("--fp16"), here)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"Conv": "fp32"}, "did not build what --fp16 promises: the inspector|14 of the engine's 14 convolutions"),
        ({"DepthwiseConv3x3": "fp32"}, "4 of the engine's 11 plugin layers do not compute in fp16"),
        ({"kind ChannelLayerNorm": "PointWiseV2"}, "the engine has 6 plugin layers where the graph has 11"),
    ],
)
def test_engine_that_lost_its_precision_is_not_written(gpu, here, broken, message):
    gpu.broken = broken
    line = failed(invoke("--fp16"), here)
    assert any(part in line for part in message.split("|"))
    assert "nothing was written" in line


@pytest.mark.parametrize(
    ("error", "message"),
    [(0.01, "the plan's pictures are 40.0 dB from ONNX Runtime's, 50 dB is the least"), (np.nan, "NaN or infinite")],
)
def test_engine_that_computes_something_else_is_not_written(gpu, here, error, message):
    gpu.error = error
    assert message in failed(invoke("--fp16"), here)


def test_failure_leaves_the_old_plan_alone(gpu, here):
    assert invoke("--fp16").exit_code == 0
    before = {path: Path(path).read_bytes() for path in written(here)}
    gpu.error = np.nan
    assert invoke("--fp16").exit_code == 1
    assert {path: Path(path).read_bytes() for path in written(here)} == before


def test_verification_is_left_out_where_it_takes_long_or_is_not_wanted(gpu, here, monkeypatch):
    assert "not run, as asked" in invoke("--fp16", "--no-verify").output
    monkeypatch.setattr(command, "VERIFY_SCORES", 10)
    assert "attention scores take long on a CPU; use --verify" in invoke("--fp16").output
    assert "checked against ONNX Runtime" in invoke("--fp16", "--verify").output


def test_check_pictures_are_within_the_profile():
    sizes = ((64, 64), (360, 640), (720, 1280))
    assert command.check_sizes(sizes) == [(192, 192), (97, 131)]
    assert command.check_sizes(((360, 640), (360, 640), (360, 640))) == [(360, 640)]
    assert command.check_sizes(((8, 8), (16, 16), (100, 64))) == [(100, 64), (97, 64)]


def test_build_that_fails_says_why(gpu, here):
    def fails(self: Any, network: Any, config: Any) -> None:
        log = next(made for made in gpu.trt.made if isinstance(made, gpu.trt.ILogger))
        log.log(gpu.trt.ILogger.Severity.ERROR, "Could not find any implementation for node Conv_7")

    gpu.trt.behaviour["Builder.build_serialized_network"] = fails
    assert "cannot build the engine (Could not find any implementation for node Conv_7)" in failed(invoke(), here)


def test_timing_cache_is_kept_for_this_tensorrt_and_gpu(gpu, here):
    def caches() -> list[bytes]:
        return [args[0] for name, args in gpu.trt.calls if name == "IBuilderConfig.create_timing_cache"]

    assert invoke("--fp16").exit_code == 0
    assert invoke("--fp16").exit_code == 0
    assert caches() == [b"", b"", b"timings"]
    (file,) = (here / "cache" / "ribsr").iterdir()
    assert file.name == f"tensorrt-{gpu.trt.__version__}-NVIDIA-H100-80GB.timing"
    assert invoke("--fp16", "--timing-cache", "cache/own").exit_code == 0
    assert Path("cache/own").read_bytes() == b"timings"


@pytest.mark.parametrize("made", [None, b""])
def test_damaged_timing_cache(gpu, here, made):
    """10 and 11 refuse it; 8.6 makes an empty one of it. The toolkit's own is replaced, a file of the user's is not."""
    assert invoke("--fp16").exit_code == 0
    (own,) = (here / "cache" / "ribsr").iterdir()
    own.write_bytes(b"nonsense")
    Path("mine").write_bytes(b"nonsense")
    gpu.trt.behaviour["IBuilderConfig.create_timing_cache"] = lambda self, data: (
        None if data and made is None else timing_cache(b"")
    )
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert f"{own}: is no timing cache of this TensorRT and GPU; it is not used, and replaced" in result.output
    assert own.read_bytes() == b"timings"
    result = invoke("--fp16", "--timing-cache", "mine")
    assert result.exit_code == 1
    assert "Error: mine: is no timing cache of this TensorRT and GPU; name another file, or remove it" in result.output
    assert Path("mine").read_bytes() == b"nonsense"


def test_full_disk_leaves_nothing(gpu, here, monkeypatch):
    def full(self: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in failed(invoke("--fp16"), here)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_stops_the_build_and_leaves_nothing(gpu, here, monkeypatch):
    """TensorRT 10 and later are told by their progress monitor; 8.6 cannot be, so the process ends at once."""
    released, exits = threading.Event(), []

    def build(self: Any, network: Any, config: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        monitor = getattr(config, "progress_monitor", None)
        if monitor is None:
            released.wait(20)
            return
        monitor.phase_start("Building Engine", None, 10**6)
        for _ in range(2000):
            if not monitor.step_complete("Building Engine", 1):
                return
            time.sleep(0.01)

    gpu.trt.behaviour["Builder.build_serialized_network"] = build
    monkeypatch.setattr(os, "_exit", exits.append)
    monkeypatch.setattr(trt_build, "CANCEL_SECONDS", 10.0)
    result = invoke("--fp16")
    released.set()
    assert "Aborted!" in result.output
    assert written(here) == []
    if gpu.trt.__version__.startswith("8."):
        assert exits == [1]
    else:
        assert result.exit_code == 1
        assert exits == []


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_is_not_lost_in_tensorrt(gpu, here, monkeypatch):
    """While 8.6 reads the graph it calls its logger in Python, and swallows what that raises."""
    read, exits = gpu.trt.behaviour["OnnxParser.parse"], []

    def swallows(self: Any, model: bytes) -> bool:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)
        except KeyboardInterrupt:
            pass
        return read(self, model)

    gpu.trt.behaviour["OnnxParser.parse"] = swallows
    monkeypatch.setattr(os, "_exit", exits.append)
    assert "Aborted!" in invoke("--fp16").output
    assert exits == [1]
    assert written(here) == []


def test_without_a_terminal_a_line_comes_now_and_then(gpu, here, monkeypatch):
    from export.trt import progress

    monkeypatch.setattr(progress, "INTERVAL", 0.05)
    monkeypatch.setattr(trt_build, "TICK", 0.02)

    def build(self: Any, network: Any, config: Any) -> Memory:
        time.sleep(0.3)
        return Memory(b"plan")

    gpu.trt.behaviour["Builder.build_serialized_network"] = build
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert result.output.count("building: 0 s") >= 2


def test_no_gpu(here, monkeypatch):
    gpu = make_gpu(OLDEST, here, monkeypatch)

    def none() -> None:
        raise cuda.CUDAError("cudaErrorNoDevice", "the NVIDIA driver finds no GPU")

    monkeypatch.setattr(cuda, "current_gpu", none)
    assert "the NVIDIA driver finds no GPU" in failed(invoke("--fp16"), here)
    assert not [name for name, _ in gpu.trt.calls if name.endswith("__init__")]  # 8.6 would crash


@pytest.mark.parametrize("missing", ["tensorrt", "onnx", "onnx_graphsurgeon"])
def test_missing_packages_are_named(here, monkeypatch, missing):
    make_gpu(TEN, here, monkeypatch)
    monkeypatch.setitem(sys.modules, missing, None)
    line = failed(invoke("--fp16"), here)
    assert "not installed: pip install 'ribsr[trt]'" in line


def test_help_needs_nothing_heavy():
    code = (
        "import sys; import export.trt; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'onnx', 'tensorrt', 'numpy', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
