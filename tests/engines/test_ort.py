"""The ONNX Runtime engine."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from engines import Description, EngineError, OutOfMemory, open_engine
from engines.base import LayerTime, NotInstalled
from engines.ort import (
    _IDENTITY,
    CPU,
    CUDA,
    ORTEngine,
    _check_placement,
    _is_out_of_memory,
    _layer_times,
    _NotOnCUDA,
    check_cuda,
    import_runtime,
)
from ribsr.base.sizes import Limits, Size
from tests.engines import fakes

ort = pytest.importorskip("onnxruntime")
on_cpu_wheel = pytest.mark.skipif(CUDA in ort.get_available_providers(), reason="needs ONNX Runtime's CPU wheel")


def expected(x: np.ndarray) -> np.ndarray:
    """What the fake network computes, by ONNX's own reference implementation."""
    import tempfile

    from onnx.reference import ReferenceEvaluator

    with tempfile.TemporaryDirectory() as folder:
        path = fakes.write_onnx(Path(folder) / "a.onnx")
        (y,) = ReferenceEvaluator(str(path)).run(None, {"input": x})
    return np.asarray(y)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 5, 7), (2, 3, 16, 8), (3, 3, 9, 31)])
def test_any_batch_and_size_runs(onnx_file: Path, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random(shape, dtype=np.float32)
    with open_engine(onnx_file) as engine:
        y = engine.run(x)
    assert y.dtype == np.float32
    assert y.shape == (shape[0], 3, 2 * shape[2], 2 * shape[3])
    np.testing.assert_allclose(y, expected(x), atol=1e-5)


def test_arrays_that_are_not_contiguous_run_too(onnx_file: Path) -> None:
    x = fakes.picture(8, 10)
    with open_engine(onnx_file) as engine:
        np.testing.assert_array_equal(engine.run(x[:, :, ::-1, ::2]), engine.run(x[:, :, ::-1, ::2].copy()))


def test_a_part_of_a_result_goes_where_it_is_wanted(onnx_file: Path) -> None:
    x, canvas = fakes.picture(8, 10), np.zeros((1, 3, 20, 30), np.float32)
    with open_engine(onnx_file) as engine:
        engine.run_into(x, canvas[..., 2:12, 5:17], (slice(3, 13), slice(0, 12)))
        expected = np.zeros_like(canvas)
        expected[..., 2:12, 5:17] = engine.run(x)[..., 3:13, :12]
        np.testing.assert_array_equal(canvas, expected)
        with pytest.raises(EngineError, match=r"tiny\.onnx: the result is \[1, 3, 16, 20\], the array to put it in"):
            engine.run_into(x, np.zeros((3, 16, 20), np.float32))


@on_cpu_wheel
def test_the_description_says_what_runs_where(onnx_file: Path) -> None:
    with open_engine(onnx_file, runtime="onnxruntime") as engine:
        assert engine.describe() == Description(
            path=str(onnx_file),
            runtime="onnxruntime",
            runtime_version=ort.__version__,
            device=CPU,
            precision="fp32",
            model="tiny",
            scale=2,
            windows=((4, 4), (8, 8)),
            form="mha",
            version="0.1.0",
            checkpoint_sha256=fakes.SHA,
        )


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (fakes.picture().astype(np.float64), r"must be float32 in \[0, 1\], got float64"),
        ((fakes.picture() * 255).astype(np.uint8), r"must be float32 in \[0, 1\], got uint8"),
        (fakes.picture()[0], r"must be \[B, 3, H, W\], got \[3, 9, 11\]"),
        (fakes.picture().transpose(0, 2, 3, 1), r"must be \[B, 3, H, W\], got \[1, 9, 11, 3\]"),
        (fakes.picture()[:, :, :0], r"every size of the input must be at least 1, got \[1, 3, 0, 11\]"),
        ([[0.5]], "must be a numpy array, got list"),
    ],
)
def test_wrong_inputs_are_refused(onnx_file: Path, checkpoint: Path, x: np.ndarray, message: str) -> None:
    for path in (onnx_file, checkpoint):
        with open_engine(path) as engine, pytest.raises(EngineError, match=message):
            engine.run(x)


def test_a_file_of_fixed_shape_names_it(tmp_path: Path) -> None:
    path = fakes.write_onnx(tmp_path / "static.onnx", shape=("b", 3, 8, 12))
    with open_engine(path) as engine:
        assert (engine.describe().batch, engine.describe().limits.fixed) == (None, Size(8, 12))
        assert engine.run(fakes.picture(8, 12)).shape == (1, 3, 16, 24)
        with pytest.raises(EngineError, match=r"static\.onnx: takes pictures of 12x8 only, got 8x12; give --tile"):
            engine.run(fakes.picture(12, 8))


def test_threads_share_an_engine(onnx_file: Path) -> None:
    pictures = [fakes.picture(5 + i % 7, 40 - i, seed=i) for i in range(24)]
    with open_engine(onnx_file) as engine:
        serial = [engine.run(x) for x in pictures]
        with ThreadPoolExecutor(6) as pool:
            parallel = list(pool.map(engine.run, pictures))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_closed_engine_says_so(onnx_file: Path) -> None:
    engine = open_engine(onnx_file)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed; open it again"):
        engine.run(fakes.picture())


def test_plugin_files_are_for_our_kernels(tmp_path: Path) -> None:
    path = fakes.write_onnx(tmp_path / "a.onnx", form="plugin")
    with pytest.raises(EngineError, match=r"is in plugin form, which needs our kernels, but there is no .*none\.so"):
        open_engine(path, device="cpu")


def test_a_graph_that_the_runtime_refuses(tmp_path: Path) -> None:
    import onnx

    path = fakes.write_onnx(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    model.graph.node[1].op_type = "Convolve"
    onnx.save(model, str(path))
    with pytest.raises(
        EngineError, match=r"a\.onnx: ONNX Runtime .* cannot load it .*Convolve.*export it again"
    ) as info:
        open_engine(path)
    assert "\n" not in str(info.value)


def test_a_stamped_file_with_other_inputs_is_refused(tmp_path: Path) -> None:
    import onnx

    path = fakes.write_onnx(tmp_path / "a.onnx")
    model = onnx.load(str(path))
    model.graph.node[0].input[0] = model.graph.input[0].name = "picture"
    model.graph.node[1].input[0] = "x"
    onnx.save(model, str(path))
    with pytest.raises(EngineError, match="inputs and outputs are not; export it again"):
        open_engine(path)


def raising(error: Exception) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


FAILED = (
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node. Name:'{}' "
)
ARENA = "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:360 void* onnxruntime::BFCArena::"
ALLOCATES = "AllocateRawInternal(size_t, bool, onnxruntime::Stream*) "
CUDA_CALL = (
    " ; GPU=0 ; hostname=h ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc ; line=9 ; expr=f(); "
)


@pytest.mark.parametrize(
    ("kind", "message", "expected"),
    [
        ("Fail", f"{FAILED}{ARENA}{ALLOCATES}Failed to allocate memory for requested buffer of size 99\n", None),
        ("Fail", f"{FAILED}{ARENA}{ALLOCATES}Available memory of 8 is smaller than requested bytes of 99", None),
        ("RuntimeException", f"{FAILED}Status Message: std::bad_alloc", None),
        ("RuntimeException", "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Exception: std::bad_alloc", None),
        ("Fail", f"{FAILED}Status Message: CUDA failure 2: out of memory{CUDA_CALL}", None),
        ("Fail", f"{FAILED}Status Message: CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED{CUDA_CALL}", None),
        (None, "", None),  # Python's own
        ("Fail", "node 5 is wrong\nmore", r"ONNX Runtime failed on \[1, 3, 9, 11\] \(.*node 5 is wrong\)"),
        ("Fail", FAILED.format("out of memory/std::bad_alloc") + "Status Message: shapes differ", "shapes differ"),
        ("Fail", f"{FAILED}{ARENA}Free(void*) chunk not found", "chunk not found"),
        ("Fail", f"{FAILED}Status Message: CUDA failure 700: an illegal memory access{CUDA_CALL}", "illegal memory"),
        ("Fail", "Failed to allocate memory for requested buffer of size 99.onnx is no file", "is no file"),
        ("InvalidArgument", f"{FAILED}Status Message: std::bad_alloc", "failed on"),
    ],
)
def test_what_fails_inside_the_runtime_is_one_line(
    onnx_file: Path, kind: str | None, message: str, expected: str | None
) -> None:
    """It is a lack of memory (None) where an allocator says so, not where a name or another error has its words."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    engine = ORTEngine(onnx_file)
    error = getattr(state, kind)(message) if kind else MemoryError()
    engine._session = SimpleNamespace(run=raising(error))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(EngineError, match=expected or "out of memory on a picture of 11x9") as info:
        engine.run(fakes.picture())
    assert "\n" not in str(info.value)
    assert isinstance(info.value, OutOfMemory) == (expected is None)


def test_the_allocator_says_what_is_waited_for() -> None:
    """In the words of the ONNX Runtime that is installed, of a node whose name says something else."""
    from onnx import TensorProto, helper

    lists = [helper.make_tensor_value_info(*entry) for entry in (("x", TensorProto.FLOAT, [1]), ("n", 7, [3]))]
    node, y = helper.make_node("Expand", ["x", "n"], ["y"], name="'"), helper.make_tensor_value_info("y", 1, [None] * 3)
    model = helper.make_model(helper.make_graph([node], "g", lists, [y]), ir_version=8)
    model.opset_import[0].version = 17
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for arena in (True, False):
        options.enable_cpu_mem_arena = arena
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
        with pytest.raises((MemoryError, Exception)) as info:
            session.run(None, {"x": np.ones(1, np.float32), "n": np.array([1 << 20, 1 << 15, 1 << 9])})
        assert _is_out_of_memory(info.value), info.value


@on_cpu_wheel
def test_cuda_on_the_cpu_wheel_is_an_error_and_auto_is_not(onnx_file: Path) -> None:
    with pytest.raises(EngineError, match=r"device cuda was asked for, but this ONNX Runtime .* has no CUDA provider"):
        open_engine(onnx_file, device="cuda")
    with open_engine(onnx_file, device="auto") as engine:
        assert engine.describe().device == CPU
        assert engine.describe().notes == ()


@on_cpu_wheel
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_cuda_provider_that_drops_out_is_never_silent(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("engines.ort.driver.capability", lambda: "9.0")
    with pytest.raises(EngineError, match="device cuda was asked for, but ONNX Runtime.+; or use --device cpu"):
        open_engine(onnx_file, device="cuda")
    with open_engine(onnx_file, device="auto") as engine:
        assert engine.describe().device == CPU
        assert len(engine.describe().notes) == 1
        assert "runs on the CPU, since" in engine.describe().notes[0]


@on_cpu_wheel
def test_a_machine_without_a_gpu_is_told_so(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr("ctypes.CDLL", no_library)
    with pytest.raises(EngineError, match="there is no NVIDIA driver here"):
        open_engine(onnx_file, device="cuda")
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(cuInit=lambda _: 100))
    with open_engine(onnx_file) as engine:
        assert "finds no usable GPU (cuInit gives 100)" in engine.describe().notes[0]


def session(*placed: tuple[str, str]) -> SimpleNamespace:
    """A session whose nodes (provider, operator) were placed so."""

    def graph(provider: str, op: str) -> SimpleNamespace:
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=op)])

    return SimpleNamespace(get_provider_graph_assignment_info=lambda: [graph(*entry) for entry in placed])


def test_heavy_nodes_must_be_on_the_gpu() -> None:
    on_gpu = session((CUDA, "Conv"), (CUDA, "MatMul"), (CPU, "Shape"))
    assert _check_placement("x2.onnx", on_gpu) == []  # pyright: ignore[reportArgumentType]
    some = session((CUDA, "Conv"), (CPU, "MultiHeadAttention"))
    assert _check_placement("x2.onnx", some) == [  # pyright: ignore[reportArgumentType]
        "x2.onnx: MultiHeadAttention nodes run on the CPU, since the CUDA provider does not take them"
    ]
    with pytest.raises(_NotOnCUDA, match="takes none of the model's Conv, MatMul nodes"):
        _check_placement("x2.onnx", session((CPU, "Conv"), (CPU, "MatMul")))  # pyright: ignore[reportArgumentType]


def test_the_timer_runs_the_network(onnx_file: Path) -> None:
    with open_engine(onnx_file, threads=1) as engine:
        timer = engine.timer(fakes.picture())
        assert timer.once() > 0
        assert "clock" in timer.clock or "events" in timer.clock
    with pytest.raises(EngineError, match="closed"):
        timer.once()


def with_a_function(path: Path) -> Path:
    """The network with names for its nodes, n0 to n6, of which n4 and n5 are in a function, as exports have it."""
    import onnx
    from onnx import helper

    model = onnx.load(str(fakes.write_onnx(path)))
    nodes = list(model.graph.node)
    for i, node in enumerate(nodes):
        node.name = f"n{i}"
    inputs, outputs = ["up", "repeated"], ["y"]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("ribsr", "Upsample", inputs, outputs, nodes[4:6], opset))
    nodes[4:6] = [helper.make_node("Upsample", inputs, outputs, "call", domain="ribsr")]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import.append(helper.make_opsetid("ribsr", 1))
    onnx.save(model, str(path))
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The working directory, and where temporary files go: both empty."""
    made = tmp_path / "work", tmp_path / "temporary"
    for folder in made:
        folder.mkdir()
    monkeypatch.chdir(made[0])
    monkeypatch.setattr("tempfile.tempdir", str(made[1]))
    return made


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as export.onnx writes it, with functions of its own: two layers of a small network."""
    pytest.importorskip("torch")
    from export.convert import Options, export_onnx

    folder = tmp_path_factory.mktemp("canonical")
    export_onnx(fakes.write_checkpoint(folder / "x2.pt"), folder / "x2.onnx", Options(verify=False))
    return folder / "x2.onnx"


def test_where_the_time_goes(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    """By the names of nodes, also of those in functions and of those that are fused; no file of it stays."""
    x = fakes.picture(90, 110)
    with open_engine(with_a_function(tmp_path / "a.onnx"), device="cpu", threads=1) as engine:
        start = time.perf_counter()
        layers = engine.profile(x, runs=3)
        spent = (time.perf_counter() - start) * 1e3
    names = [layer.name for layer in layers]
    last = [name for name in names if name.endswith(("n4", "n5", "n6"))]
    assert [name[-2:] for name in last] == ["n4", "n5", "n6"], "the order of a run"
    assert len(names) == len(set(names)) >= 6
    assert 0 < sum(layer.milliseconds for layer in layers) < spent / 4
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_functions_of_exports_are_seen_through(canonical: Path) -> None:
    x = fakes.picture(64, 96)
    with open_engine(canonical, device="cpu", threads=1) as engine:
        layers = engine.profile(x, runs=3)
        timer = engine.timer(x)
        whole = min(timer.once() for _ in range(5))
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names) > 4
    assert any("MultiHeadAttention" in name for name in names), "what the functions' nodes are fused to"
    assert whole / 20 < sum(layer.milliseconds for layer in layers) < 1000 * whole, "milliseconds a run"


def test_times_are_means_of_every_run_but_the_first() -> None:
    def event(name: str, duration: int, kind: str = "Node") -> dict[str, object]:
        return {"cat": kind, "name": name, "dur": duration}

    session = event("model_run", 9999, "Session")
    first = [session, event("b_kernel_time", 9000), event("a_kernel_time", 9000), event("b_kernel_time", 9000)]
    second = [session, event("b_kernel_time", 1000), event("a_kernel_time", 400), event("b_kernel_time", 3000)]
    third = [session, event("b_kernel_time", 2000), event("a_kernel_time", 800), event("b_kernel_time", 2000)]
    b, a = _layer_times([*first, *second, *third], 2)
    assert b == LayerTime("b", 4.0)
    assert a.name == "a"
    assert a.milliseconds == pytest.approx(0.6)


def test_a_model_that_cannot_be_profiled(
    onnx_file: Path, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    engine = ORTEngine(onnx_file, device="cpu")
    with pytest.raises(EngineError, match="must be float32"):
        engine.profile(np.zeros((1, 3, 9, 11)))
    with monkeypatch.context() as patched:
        patched.setattr(ort.InferenceSession, "run", raising(state.Fail("node 5 is wrong")))
        with pytest.raises(EngineError, match=r"ONNX Runtime failed on \[1, 3, 9, 11\] \(.*node 5 is wrong\)"):
            engine.profile(fakes.picture())
    engine.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.profile(fakes.picture())
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_what_is_not_installed_has_a_type(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(NotInstalled, match=r"pip install .*\[ort\].*pip install .*\[ort-gpu\]"):
        open_engine(onnx_file, runtime="onnxruntime")


@pytest.mark.parametrize(
    ("release", "numpy", "refused"),
    [
        ("1.15.1", "1.26.4", r"ONNX Runtime 1\.15\.1 computes these files wrongly: pip install .*\[ort\]"),
        ("1.18.1", "2.4.6", r"ONNX Runtime 1\.18\.1 was made for NumPy 1, and this is 2\.4\.6: pip install 'numpy<2'"),
        ("1.16.3", "1.26.4", None),
        ("1.19.0", "2.4.6", None),
    ],
)
def test_releases_that_do_not_do(
    onnx_file: Path, monkeypatch: pytest.MonkeyPatch, release: str, numpy: str, refused: str | None
) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            return release
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(np, "__version__", numpy)
    monkeypatch.setattr(ort, "__version__", release)
    if refused is None:
        assert import_runtime() is ort
        return
    with pytest.raises(EngineError, match=refused):
        open_engine(onnx_file)


def test_the_least_of_files_is_one() -> None:
    """`check_cuda` opens it on a GPU."""
    session = ort.InferenceSession(_IDENTITY, providers=[CPU])
    assert session.run(["y"], {"x": np.full(1, 3, np.float32)})[0] == 3


@on_cpu_wheel
def test_why_nothing_runs_on_a_gpu() -> None:
    with pytest.raises(
        EngineError, match=r"has no CUDA provider; pip uninstall onnxruntime && pip install .*\[ort-gpu\]"
    ):
        check_cuda()


def test_a_description_in_json_has_the_shape_and_the_sizes(tmp_path: Path) -> None:
    with open_engine(fakes.write_onnx(tmp_path / "a.onnx", shape=(1, 3, 8, "w"))) as engine:
        described = engine.describe()
    assert described.to_json()["shape"] == [1, 3, 8, None]
    assert described.to_json()["sizes"] is None
    limited = replace(described, limits=Limits(Size(8, 9), Size(80, 90)))
    assert limited.to_json()["shape"] == [1, 3, None, None]
    assert json.loads(json.dumps(limited.to_json()))["sizes"] == [[8, 9], [80, 90]]
