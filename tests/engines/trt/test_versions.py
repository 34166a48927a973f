"""TensorRT's objects in all versions: over fakes made of recorded surfaces, which are checked against real bindings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.base import EngineError, OutOfMemory
from engines.trt.builder import Builder
from engines.trt.plan import Context, Plan
from engines.trt.versions import TensorRT
from plugins import library
from tests.engines.trt.tensorrt_fake import LEAN, RTX, VERSIONS, Memory, fake_tensorrt, instance, recorded

HERE = Path(__file__).parent
BINDINGS = Path(os.environ.get("TENSORRT_BINDINGS") or HERE.parents[2] / ".venv" / "tensorrt")
"""Folders `10` and `11` with the bindings and stub libraries, `lean10`, `lean11` and `rtx` with all of it;
.ci/tensorrt_bindings makes them."""

MODERN = [version for version in VERSIONS if not version.startswith("8.")]


def of(module: Any) -> TensorRT:
    """TensorRT, of a played module."""
    return TensorRT(module, rtx=module.__name__ == "tensorrt_rtx_bindings", lean=module.__name__ == "tensorrt_lean")


@pytest.fixture(params=[*VERSIONS, RTX])
def trt(request: pytest.FixtureRequest) -> Any:
    """The module."""
    return fake_tensorrt(request.param)


@pytest.mark.parametrize("version", [*MODERN, *(f"lean-{version}" for version in MODERN), RTX])
def test_records_are_what_the_real_bindings_offer(version):
    kind = next((kind for kind in ("lean", "rtx") if version.startswith(kind)), "")
    folder = BINDINGS / (kind if kind == "rtx" else kind + version.removeprefix("lean-").split(".")[0])
    if not folder.is_dir():
        pytest.skip(f"no bindings in {folder}: make bindings")
    module = "_".join(filter(None, ("tensorrt", kind, "bindings")))
    done = subprocess.run(
        [sys.executable, str(HERE / "tensorrt_surface.py"), module],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == recorded(version)


def test_the_three_generations_are_recorded():
    assert [version.split(".")[0] for version in VERSIONS] == ["8", "10", "11"]


@pytest.mark.parametrize(("version", "lean"), [*zip(VERSIONS, LEAN, strict=True)])
def test_lean_runtimes_run_as_the_whole_of_their_version_and_build_nothing(version, lean):
    whole, part = recorded(version), recorded(lean)
    assert part["version"] == whole["version"]
    for name in ("Runtime", "ICudaEngine", "IExecutionContext", "IPluginRegistry", "ILogger", "IProfiler"):
        assert part["classes"][name] == whole["classes"][name]
    assert not {"Builder", "OnnxParser", "INetworkDefinition", "EngineInspector"} & part["classes"].keys()
    plan = opened(fake_tensorrt(lean))
    assert plan.trt.lean
    assert plan.layers() == []


@pytest.mark.parametrize("major", [10, 11])
def test_the_real_lean_runtime_registers_our_plugins(major):
    folder, file = BINDINGS / f"lean{major}", library.tensorrt_path(major)
    if not folder.is_dir() or not file.is_file():
        pytest.skip(f"needs {folder} (make bindings) and {file}")
    code = (
        "import sys, tensorrt_lean_bindings as trt; from pathlib import Path; from plugins import library; "
        "library.load_tensorrt(trt, Path(sys.argv[1])); print(len(trt.get_plugin_registry().all_creators))"
    )
    paths = os.pathsep.join((str(folder / "site"), str(HERE.parents[2])))
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("builder", "compatible", "here", "lean", "runs"),
    [
        ("8.6.0", False, "8.6.0", False, True),
        ("8.6.0", False, "8.6.1", False, False),
        ("8.6.0", False, "8.6.0", True, False),
        ("8.6.0", True, "8.6.0", False, True),
        ("8.6.0", True, "8.6.0", True, True),
        ("10.0.1", True, "10.16.1.11", True, True),
        ("10.16.1.11", True, "10.0.1", True, False),
        ("8.6.0", True, "10.16.1.11", True, False),
        ("10.16.1.11", True, "11.4.0.106", False, False),
    ],
)
def test_which_plans_a_release_runs(builder, compatible, here, lean, runs):
    assert TensorRT(SimpleNamespace(__version__=here), lean=lean).runs(builder, compatible) == runs


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("asked", [False, True])
def test_version_compatible_builds_leave_the_lean_runtime_out(version, asked):
    trt = fake_tensorrt(version)
    Builder(of(trt)).configure(False, version_compatible=asked)
    flags = {flag for (flag,) in arguments(trt, "IBuilderConfig.set_flag")}
    wanted = {trt.BuilderFlag.VERSION_COMPATIBLE, trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME}
    assert flags & wanted == (wanted if asked else set())


def complaining(message: str, result: Any = None, severity: str = "ERROR") -> Any:
    """What a call of TensorRT does that logs something, in the thread that calls it, and fails."""

    def fail(self: Any, *args: Any) -> Any:
        module = self.module
        (log,) = (made for made in module.made if isinstance(made, module.ILogger))
        log.log(module.ILogger.Severity[severity], message)
        return result

    return fail


def raising(message: str, severity: str = "ERROR") -> Any:
    """A constructor that logs as TensorRT does and then fails."""

    def fail(self: Any, log: Any) -> None:
        log.log(log.module.ILogger.Severity[severity], message)
        raise TypeError("factory function returned nullptr")

    return fail


def opened(trt: Any) -> Plan:
    return Plan(of(trt), b"plan", "x2.plan")


def arguments(trt: Any, call: str) -> list[Any]:
    return [args for name, args in trt.calls if name == call]


# Running


def test_runtime_and_builder_say_why_they_do_not_start(trt):
    trt.behaviour["Runtime.__init__"] = raising("CUDA initialization failure with error: 35", "WARNING")
    trt.behaviour["Builder.__init__"] = raising("out of luck")
    with pytest.raises(EngineError, match="runtime .CUDA initialization failure with error: 35"):
        opened(trt)
    with pytest.raises(EngineError, match="builder .out of luck"):
        Builder(of(trt))


def test_a_plan_is_an_engine_or_the_reason(trt):
    assert isinstance(opened(trt).engine, trt.ICudaEngine)
    trt.made.clear()
    trt.behaviour["Runtime.deserialize_cuda_engine"] = complaining("magic tag does not match")
    with pytest.raises(EngineError, match=r"x2.plan: .*magic tag does not match.*python -m export.trt"):
        opened(trt)


def test_a_plan_that_does_not_fit_the_gpu_is_not_called_unreadable(trt):
    trt.behaviour["Runtime.deserialize_cuda_engine"] = complaining(
        "Requested amount of GPU memory (9 bytes) could not be allocated."
    )
    with pytest.raises(EngineError, match=r"x2.plan: too little GPU memory .*could not be allocated.*nvidia-smi"):
        opened(trt)


def test_device_memory_is_the_newest_property_there_is(trt):
    name = "device_memory_size" if trt.__version__.startswith("8.") else "device_memory_size_v2"
    trt.behaviour[f"ICudaEngine.{name}"] = 7 << 20
    assert opened(trt).device_memory == 7 << 20


def test_profile_shapes_are_tuples(trt):
    shapes = [[1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 32, 32]]
    trt.behaviour["ICudaEngine.get_tensor_profile_shape"] = lambda self, name, index: shapes
    assert opened(trt).shapes == tuple(map(tuple, shapes))
    assert arguments(trt, "ICudaEngine.get_tensor_profile_shape") == [("input", 0)]


def test_layers_that_are_no_json_are_told_apart(trt):
    texts = ['{"Name": "a", "LayerType": "CaskConvolution"}', '{"Name": "b", "Weights": nan}', '"bare name"']
    trt.behaviour["EngineInspector.get_layer_information"] = lambda self, index, form: texts[index]
    trt.behaviour["ICudaEngine.num_layers"] = 3
    found = opened(trt).layers()
    assert [layer["LayerType"] for layer in found] == ["CaskConvolution", "unreadable", "unreadable"]
    forms = {call[1][1] for call in trt.calls if call[0] == "EngineInspector.get_layer_information"}
    assert forms == {trt.LayerInformationFormat.JSON}


def test_running_takes_calls_that_every_version_has(trt):
    trt.behaviour["ICudaEngine.get_tensor_shape"] = lambda self, name: (1, 3, 8, 12)
    context = Context(opened(trt), 7)
    trt.behaviour["IExecutionContext.get_tensor_shape"] = lambda self, name: [1, 3, 16, 24]
    shapes = {}
    context.bind((1, 3, 8, 12), lambda name, shape: shapes.setdefault(name, shape)[2])
    assert shapes == {"input": (1, 3, 8, 12), "output": (1, 3, 16, 24)}
    assert context.output_shape == (1, 3, 16, 24)

    def reports(self: Any, stream: int) -> bool:
        if self.profiler is not None:
            self.profiler.report_layer_time("Conv_1", 0.5)
            self.profiler.report_layer_time("Conv_1", 0.25)
        return True

    trt.behaviour["IExecutionContext.execute_async_v3"] = reports
    with context.profiling() as layers:
        context.enqueue()
    context.enqueue()
    assert layers == {"Conv_1": 0.75}
    assert [call for call in trt.calls if call[0].startswith("IExecutionContext.")] == [
        ("IExecutionContext.set_input_shape", ("input", (1, 3, 8, 12))),
        ("IExecutionContext.get_tensor_shape", ("output",)),
        ("IExecutionContext.set_tensor_address", ("input", 8)),
        ("IExecutionContext.set_tensor_address", ("output", 16)),
        ("IExecutionContext.execute_async_v3", (7,)),
        ("IExecutionContext.execute_async_v3", (7,)),
    ]


NO_MEMORY = "1: [defaultAllocator.cpp::allocate::19] Error Code 1: Cuda Runtime (out of memory)"
BAD_ACCESS = "1: [runner.cpp::execute::1] Error Code 1: Cuda Runtime (an illegal memory access was encountered)"


@pytest.mark.parametrize(("message", "error"), [(NO_MEMORY, OutOfMemory), (BAD_ACCESS, EngineError)])
def test_running_that_fails_says_why(trt, message, error):
    trt.behaviour["ICudaEngine.get_tensor_shape"] = lambda self, name: (1, 3, 8, 8)
    context = Context(opened(trt), 0)
    failing = complaining(message)
    trt.behaviour |= {
        "ICudaEngine.create_execution_context": failing,
        "IExecutionContext.execute_async_v3": failing,
        "IExecutionContext.set_input_shape": failing,
    }
    calls = (
        lambda: Context(context._plan, 0),
        context.enqueue,
        lambda: context.bind((1, 3, 8, 8), lambda name, shape: 0),
    )
    for call in calls:
        with pytest.raises(EngineError, match=re.escape(message)) as info:
            call()
        assert type(info.value) is error
        assert str(info.value).startswith("x2.plan: ")


@pytest.mark.parametrize(
    ("shape", "active", "asked"),
    [((1, 3, -1, -1), -1, True), ((1, 3, -1, -1), 0, False), ((1, 3, 8, 8), -1, False)],
    ids=["8.6, not the first", "has it", "static"],
)
def test_a_context_without_the_profile_asks_for_it_on_its_stream(trt, shape, active, asked):
    trt.behaviour["ICudaEngine.get_tensor_shape"] = lambda self, name: shape
    trt.behaviour["IExecutionContext.active_optimization_profile"] = active
    Context(opened(trt), 7)
    assert arguments(trt, "IExecutionContext.set_optimization_profile_async") == ([(0, 7)] if asked else [])


def test_a_plan_whose_profile_cannot_be_shared_is_named(trt):
    trt.behaviour["ICudaEngine.get_tensor_shape"] = lambda self, name: (1, 3, -1, -1)
    trt.behaviour["IExecutionContext.active_optimization_profile"] = -1
    trt.behaviour["IExecutionContext.set_optimization_profile_async"] = complaining(
        "Profile 0 has been chosen by another IExecutionContext", False
    )
    with pytest.raises(EngineError, match=r"x2.plan: .*one thread at a time.*python -m export.trt .Profile 0 has been"):
        Context(opened(trt), 7)


# Building


def configured(trt: Any, half: bool = False, **options: Any) -> tuple[Builder, Any]:
    """A builder, and TensorRT's configuration that it made."""
    trt.behaviour = {"INetworkDefinition.num_layers": 0, "INetworkDefinition.num_inputs": 0} | trt.behaviour
    builder = Builder(of(trt))
    builder.configure(half, **options)
    return builder, builder._config


@pytest.mark.parametrize(("version", "flag"), [*zip(VERSIONS, ("EXPLICIT_BATCH", "STRONGLY_TYPED", None), strict=True)])
def test_network_computes_in_the_types_of_the_graph(version, flag):
    trt = fake_tensorrt(version)
    Builder(of(trt))
    (flags,) = dict(trt.calls)["Builder.create_network"]
    assert flags == (0 if flag is None else 1 << trt.NetworkDefinitionCreationFlag[flag])


def test_parser_says_which_node_it_does_not_take(trt):
    builder = Builder(of(trt))
    builder.parse(b"model")
    trt.behaviour["OnnxParser.parse"] = lambda self, model: False
    trt.behaviour["OnnxParser.num_errors"] = 1
    trt.behaviour["ParserError.node"] = lambda self: 41
    trt.behaviour["ParserError.desc"] = lambda self: "Plugin not found,\nare the name and version correct?"
    with pytest.raises(EngineError, match="node 41: Plugin not found, are the name and version correct"):
        builder.parse(b"model")


def test_configuration_has_no_tf32_and_layers_that_can_be_inspected(trt):
    _, config = configured(trt)
    assert config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED
    assert arguments(trt, "IBuilderConfig.clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert arguments(trt, "IBuilderConfig.set_flag") == []
    assert arguments(trt, "IBuilderConfig.set_memory_pool_limit") == []
    assert config.builder_optimization_level is None


def test_configuration_takes_the_limits_that_are_given(trt):
    _, config = configured(trt, workspace=3 << 30, optimization_level=5)
    assert arguments(trt, "IBuilderConfig.set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 3 << 30)]
    assert config.builder_optimization_level == 5


@pytest.mark.parametrize("version", VERSIONS)
def test_float16_flag_where_networks_are_weakly_typed_only(version):
    trt = fake_tensorrt(version)
    configured(trt, half=True)
    flags = [flag.name for (flag,) in arguments(trt, "IBuilderConfig.set_flag")]
    assert flags == (["FP16", "PREFER_PRECISION_CONSTRAINTS"] if version.startswith("8.") else [])


def test_8_6_needs_neither_cublas_nor_cudnn():
    trt = fake_tensorrt(VERSIONS[0])
    configured(trt)
    sources = trt.TacticSource
    ((chosen,),) = arguments(trt, "IBuilderConfig.set_tactic_sources")
    assert chosen == 1 << sources.JIT_CONVOLUTIONS | 1 << sources.EDGE_MASK_CONVOLUTIONS
    for version in MODERN:
        later = fake_tensorrt(version)
        configured(later)
        assert arguments(later, "IBuilderConfig.set_tactic_sources") == []


def test_contexts_of_8_6_may_share_the_profile_as_later_ones_do_anyway():
    trt = fake_tensorrt(VERSIONS[0])
    configured(trt)
    shared = trt.PreviewFeature.PROFILE_SHARING_0806
    assert arguments(trt, "IBuilderConfig.set_preview_feature") == [(shared, True)]
    for version in MODERN:
        later = fake_tensorrt(version)
        configured(later)
        assert arguments(later, "IBuilderConfig.set_preview_feature") == []


def test_8_6_keeps_float32_islands_and_forces_half_convolutions():
    """input → Cast 16 → Conv → Cast 32 → Mul → Cast 16 → Conv → Cast 32 → output, as `export.precision` writes it."""
    trt = fake_tensorrt(VERSIONS[0])
    half, single, kinds = trt.DataType.HALF, trt.DataType.FLOAT, trt.LayerType

    def tensor(name: str, dtype: Any = single) -> Any:
        return instance(trt, "ITensor", name=name, dtype=dtype)

    chain = [
        (kinds.CAST, "input/float16"),
        (kinds.CONVOLUTION, "a"),
        (kinds.CAST, "a/float32"),
        (kinds.ELEMENTWISE, "b"),
        (kinds.ACTIVATION, "c"),
        (kinds.CAST, "c/float16"),
        (kinds.PLUGIN_V2, "d"),
        (kinds.CONVOLUTION, "e"),
        (kinds.SHAPE, "f"),
        (kinds.CONVOLUTION, "g"),
        (kinds.CAST, "output"),
    ]
    # What 8.6 says of an activation's type before it builds means nothing; integers it knows.
    dtypes = {"f": trt.DataType.INT32}
    tensors = [tensor("input"), *(tensor(name, dtypes.get(name, single)) for _, name in chain)]
    layers = [instance(trt, "ILayer", type=kind, num_inputs=1, num_outputs=1) for kind, _ in chain]
    trt.behaviour |= {
        "ILayer.get_input": lambda self, i: tensors[layers.index(self)],
        "ILayer.get_output": lambda self, i: tensors[layers.index(self) + 1],
        "INetworkDefinition.get_layer": lambda self, i: layers[i],
        "INetworkDefinition.get_input": lambda self, i: tensors[0],
        "INetworkDefinition.num_layers": len(layers),
        "INetworkDefinition.num_inputs": 1,
    }
    configured(trt, half=True)
    expected = [None, half, None, single, single, None, None, half, None, half, None]
    assert [layer.precision for layer in layers] == expected
    assert arguments(trt, "ILayer.set_output_type") == [(0, dtype) for dtype in expected if dtype is not None]


def test_profile_that_tensorrt_refuses_is_an_error(trt):
    builder, _ = configured(trt)
    shapes = (1, 3, 8, 8), (1, 3, 16, 16), (1, 3, 32, 32)
    builder.add_profile(*shapes)
    assert arguments(trt, "IOptimizationProfile.set_shape") == [("input", *shapes)]
    trt.behaviour["IBuilderConfig.add_optimization_profile"] = -1
    with pytest.raises(EngineError, match=r"refuses inputs of \(1, 3, 8, 8\) over"):
        builder.add_profile(*shapes)


def test_foreign_timing_cache_is_replaced_by_an_empty_one(trt):
    def cache(data: bytes) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: Memory(data))

    builder, _ = configured(trt)
    taken = []
    trt.behaviour["IBuilderConfig.set_timing_cache"] = lambda self, cache, ignore_mismatch: not taken.append(cache)
    create = "IBuilderConfig.create_timing_cache"
    trt.behaviour[create] = lambda self, data: cache(data)
    assert builder.use_timing_cache(b"from before")
    assert builder.use_timing_cache(b"")
    trt.behaviour[create] = lambda self, data: None if data else cache(b"")
    assert not builder.use_timing_cache(b"damaged")
    trt.behaviour[create] = lambda self, data: cache(b"")  # as 8.6 does
    assert not builder.use_timing_cache(b"damaged")
    assert [bytes(one.serialize()) for one in taken] == [b"from before", b"", b"", b""]
    trt.behaviour[create] = lambda self, data: cache(data)
    accepted = iter([False, True])
    trt.behaviour["IBuilderConfig.set_timing_cache"] = lambda self, cache, ignore_mismatch: (
        taken.append(cache) or next(accepted)
    )
    assert not builder.use_timing_cache(b"of another GPU")
    assert [bytes(one.serialize()) for one in taken[-2:]] == [b"of another GPU", b""]


def test_timing_cache_is_bytes(trt):
    trt.behaviour["ITimingCache.serialize"] = lambda self: Memory(b"cache")
    assert configured(trt)[0].timing_cache == b"cache"


def test_build_gives_the_plan_or_the_reason(trt):
    builder, _ = configured(trt)
    trt.behaviour["Builder.build_serialized_network"] = lambda self, network, config: Memory(b"plan")
    assert builder.build() == b"plan"
    trt.behaviour["Builder.build_serialized_network"] = complaining("Could not find any implementation for node Conv_7")
    with pytest.raises(EngineError, match="cannot build the engine .Could not find any implementation for node Conv_7"):
        builder.build()


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_and_bfloat16_come_with_10(version):
    trt = fake_tensorrt(version)
    found = of(trt)
    assert found.has_progress_monitor == found.has_bfloat16 == (version in MODERN)
    assert hasattr(trt, "IProgressMonitor") == found.has_progress_monitor


@pytest.mark.parametrize("version", VERSIONS)
def test_progress_monitor_passes_on_what_tensorrt_reports(version):
    told = []
    watcher: Any = SimpleNamespace(
        start=lambda *args: told.append(args), step=lambda phase, i: i < 2, finish=lambda phase: told.append(phase)
    )
    builder, config = configured(fake_tensorrt(version))
    assert builder.report_to(watcher) == (version in MODERN)
    if version in MODERN:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 3)
        assert [monitor.step_complete("Building", i) for i in range(3)] == [True, True, False]
        monitor.phase_finish("Building")
        assert told == [("Building", None, 3), "Building"]


# Finding it


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ModuleNotFoundError(name='tensorrt')", "TensorRT for Python is not installed: pip install"),
        ("raise OSError('libnvinfer.so.8: cannot open')", "cannot be loaded .libnvinfer.so.8: cannot open"),
        ("raise ImportError('undefined symbol')", "cannot be loaded .undefined symbol"),
        (  # what a wheel for another Python says
            "raise ModuleNotFoundError('No module named a.b', name='tensorrt_bindings.tensorrt')",
            "cannot be loaded .No module named a.b.*fit this Python: pip install",
        ),
        ("__version__ = '8.5.3'", "8.5.3 is too old"),
    ],
)
def test_tensorrt_that_is_missing_broken_or_old_is_named(tmp_path, monkeypatch, code, message):
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(EngineError, match=message):
        TensorRT.load()
    sys.modules.pop("tensorrt", None)


@pytest.mark.parametrize(
    ("text", "expected"), [("8.6.0", (8, 6)), ("8.6.1.post1", (8, 6)), ("10.16.1.11", (10, 16)), ("11.0.0b2", (11, 0))]
)
def test_version_is_compared_as_numbers(text, expected):
    found = TensorRT(SimpleNamespace(__version__=text))
    assert found.release == expected
    assert found.major == expected[0]
    assert (found.reads_attention, found.newest_opset) == ((False, 17) if found.major == 8 else (True, 23))
