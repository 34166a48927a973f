"""Our kernels in ONNX Runtime without a GPU: the files rewritten, and the engine before a played CUDA provider."""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

import plugins  # noqa: E402
import ribsr  # noqa: E402
from engines import EngineError, OutOfMemory, open_engine  # noqa: E402
from engines.base import LayerTime  # noqa: E402
from engines.metadata import read_stamp  # noqa: E402
from engines.ort import CPU, CUDA, MOST_GRAPHS, NOT_RECORDED, ORTEngine  # noqa: E402
from engines.ort_kernels import NoKernels, rewritten  # noqa: E402
from export.canonical import trace  # noqa: E402
from export.fold import fold  # noqa: E402
from plugins import library, operators  # noqa: E402
from tests.engines import fakes, halves  # noqa: E402
from tests.plugins.test_channels_last import evaluate  # noqa: E402
from tests.plugins.test_fuse import small  # noqa: E402

ATTENTION = operators.CYCLIC_WINDOW_ATTENTION.name


@pytest.fixture
def stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library of custom operators: a file that nobody looks into."""
    file = tmp_path / "ops.so"
    file.touch()
    monkeypatch.setenv(library.ONNXRUNTIME_VARIABLE, str(file))
    monkeypatch.setattr(library, "opened", lambda file: None)
    monkeypatch.setattr(ort.SessionOptions, "register_custom_ops_library", lambda self, file: None)
    return file


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One block of sst-light in float16."""
    return halves.write(tmp_path_factory.mktemp("canonical") / "x2.onnx", halves.of(small("sst-light", 17), "fp16"))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in plugin form."""
    file = tmp_path_factory.mktemp("plugin") / "x2.onnx"
    return halves.write(file, halves.of(small("sst-light", 17), "fp16"), "plugin")


def rewrite(file: Path, capability: str = "8.0") -> onnx.ModelProto:
    return onnx.load_from_string(rewritten(str(file), read_stamp(file), capability))


# Files


@pytest.mark.usefixtures("stands")
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ["sst-light", "sst-l+", "esc-rib"])
def test_both_forms_come_to_the_same_graph(tmp_path: Path, name: str, dtype: str) -> None:
    half = halves.of(small(name, 17), dtype)
    graphs = []
    for form in ("canonical", "plugin"):
        made = rewrite(halves.write(tmp_path / f"{form}.onnx", half, form, dtype))
        onnx.checker.check_model(made)
        assert len(made.functions) == 0
        graphs.append(made.graph.SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]
    whole = operators.FEED_FORWARD.name in {node.op_type for node in made.graph.node}
    assert whole == (name != "esc-rib")


@pytest.mark.usefixtures("stands")
def test_the_file_stays_as_it_is(canonical: Path) -> None:
    before = canonical.read_bytes()
    rewrite(canonical)
    assert canonical.read_bytes() == before


@pytest.mark.parametrize("form", ["mha", "attention", "matmul"])
def test_other_forms_have_no_kernels(tmp_path: Path, form: str) -> None:
    file = fakes.write_onnx(tmp_path / "a.onnx", precision="fp16", form=form)
    with pytest.raises(NoKernels, match=f"form {form} has .*: export it again without --form"):
        rewrite(file)


@pytest.mark.parametrize("capability", ["7.5", "6.1"])
def test_older_gpus_have_no_kernels(canonical: Path, capability: str) -> None:
    with pytest.raises(NoKernels, match=rf"compute capability 8\.0 or later, and this one has {capability}"):
        rewrite(canonical, capability)


def test_a_library_that_is_not_built(canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.ONNXRUNTIME_VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(NoKernels, match=r"there is no .*none\.so: python -m plugins\.build makes it"):
        rewrite(canonical)


@pytest.mark.parametrize(
    ("source", "found"),
    [("int ribsr_interface_version(void) { return 3; }", "3"), ("int other(void) { return 7; }", "none")],
)
def test_a_library_of_another_version(
    canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, found: str
) -> None:
    cc = shutil.which("cc") or pytest.skip("needs a C compiler")
    (tmp_path / "old.c").write_text(source)
    subprocess.run([cc, "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "old.so"], check=True)
    monkeypatch.setenv(library.ONNXRUNTIME_VARIABLE, str(tmp_path / "old.so"))
    with pytest.raises(NoKernels) as info:
        rewrite(canonical)
    wanted = f"old.so has interface version {found}, not {library.INTERFACE_VERSION}: run `python -m plugins.build`"
    assert str(info.value).endswith(wanted)


def test_a_file_that_is_no_library(canonical: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.so").write_text("text")
    monkeypatch.setenv(library.ONNXRUNTIME_VARIABLE, str(tmp_path / "text.so"))
    with pytest.raises(NoKernels, match=r"text\.so cannot be loaded: ") as info:
        rewrite(canonical)
    assert "\n" not in str(info.value)


@pytest.mark.usefixtures("stands")
@pytest.mark.parametrize("missing", ["onnx", "onnx_graphsurgeon"])
def test_packages_that_are_missing(canonical: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    stamp = read_stamp(canonical)
    for name in ("fuse", "channels_last"):
        monkeypatch.delitem(sys.modules, f"plugins.{name}")
        monkeypatch.delattr(plugins, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(NoKernels, match=rf"^{missing} is not installed: pip install .*\[ort-gpu\]'$"):
        rewritten(str(canonical), stamp, "8.0")


@pytest.mark.usefixtures("stands")
@pytest.mark.parametrize("form", ["canonical", "plugin"])
def test_heads_that_the_kernel_is_not_made_for(checkpoint: Path, tmp_path: Path, form: str) -> None:
    half = halves.to_half(trace(fold(ribsr.load(checkpoint))[0], 17))
    file = halves.write(tmp_path / "tiny.onnx", half, form)
    with pytest.raises(
        NoKernels, match=r"it has heads of 16 channels and rank 8, ours are made for \(16, 32\) and \(16, 24, 32\)"
    ):
        rewrite(file)


@cache
def attention_of(bare_name: str) -> onnx.NodeProto:
    """A network's second attention."""
    return [node for node in small(bare_name, 17).graph.node if node.op_type == ATTENTION][1]


@pytest.mark.usefixtures("stands")
def test_an_attention_in_float32(tmp_path: Path) -> None:
    half = halves.to_half(small("sst-light", 17), [attention_of("sst-light").output[0]])
    with pytest.raises(NoKernels, match="an attention in it is kept in float32, since it would overflow"):
        rewrite(halves.write(tmp_path / "x2.onnx", half))


@pytest.mark.usefixtures("stands")
def test_what_stays_in_float32_around_an_attention(tmp_path: Path) -> None:
    """Each node before an attention in turn: the heads are found behind the Cast, and it computes the same."""
    bare, attention = small("sst-light", 17), attention_of("sst-light")
    producers = {name: node for node in bare.graph.node for name in node.output}
    project = producers[attention.input[0]]
    x = fakes.picture(9, 10)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    for name in (project.input[0], producers[attention.input[3]].input[0]):
        file = halves.write(tmp_path / "x2.onnx", halves.to_half(bare, [name]))
        made = rewrite(file)
        found = [node.op_type for node in made.graph.node]
        assert found.count(ATTENTION) == 6
        if name == project.input[0]:
            assert found.count("Cast") > 2
            session = ort.InferenceSession(str(file), options, providers=[CPU])
            np.testing.assert_allclose(evaluate(made, x), session.run(None, {"input": x})[0], rtol=0, atol=5e-3)


# A played CUDA provider


class Value:
    """An OrtValue on the GPU."""

    made: list[Value] = []
    fail: Exception | None = None

    def __init__(self, x: np.ndarray, device: str, index: int):
        assert (device, index) == ("cuda", 0)
        if Value.fail is not None:
            raise Value.fail
        assert x.flags.c_contiguous
        self.x = x
        self.copies = 0
        Value.made.append(self)

    @staticmethod
    def ortvalue_from_numpy(x: np.ndarray, device: str, index: int) -> Value:
        return Value(x.copy(), device, index)

    @staticmethod
    def ortvalue_from_shape_and_type(shape: list[int], dtype: Any, device: str, index: int) -> Value:
        return Value(np.full(shape, np.nan, dtype), device, index)

    def update_inplace(self, x: np.ndarray) -> None:
        assert x.flags.c_contiguous
        self.x[...] = x
        self.copies += 1

    def data_ptr(self) -> int:
        return self.x.ctypes.data


class Binding:
    """values: what inputs and outputs are in, each with the array `x`."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.values[name] = value

    def bind_input(self, name: str, device: str, index: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert (device, index, dtype) == ("cpu", 0, np.float32)
        self.values[name] = SimpleNamespace(x=at(address, shape))

    bind_ortvalue_output, bind_output = bind_ortvalue_input, bind_input


def at(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """What is there, as float32 of that shape."""
    return np.ctypeslib.as_array((ctypes.c_float * math.prod(shape)).from_address(address)).reshape(shape)


class Session:
    """One whose network repeats pixels. ran: the graph of each run with buffers, None without one."""

    made: list[Session] = []
    fails: list[Exception] = []

    def __init__(self, model: str | bytes, options: Any, providers: list[Any], enable_fallback: int):
        if CUDA in dict(providers) and Session.fails:
            raise Session.fails.pop(0)
        self.model, self.options, self.providers = model, options, dict(providers)
        self.ran: list[str | None] = []
        self.fail: Exception | None = None
        self.inside = 0
        Session.made.append(self)

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="input", type="tensor(float)", shape=["b", 3, "h", "w"])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="output")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def run(self, outputs: list[str], feeds: dict[str, np.ndarray], options: object = None) -> list[np.ndarray]:
        self._may_fail()
        return [larger(feeds["input"])]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self._may_fail()
        self.inside += 1
        assert self.inside == 1, "two threads at once"
        try:
            graph = options.get_run_config_entry("gpu_graph_id")
        except Exception:  # noqa: BLE001 (there is none)
            graph = None
        self.ran.append(graph)
        binding.values["output"].x[...] = larger(binding.values["input"].x)
        self.inside -= 1

    def _may_fail(self) -> None:
        if self.fail is not None:
            raise self.fail


def larger(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, 2).repeat(2, 3)


@pytest.fixture
def cuda(stands: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ONNX Runtime with a CUDA provider, on a machine with an H200; the library of custom operators."""
    Session.made, Session.fails, Value.made, Value.fail = [], [], [], None
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "OrtValue", Value)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr("engines.driver.capability", lambda: "9.0")
    monkeypatch.setattr("engines.driver.copy_to_host", lambda address, y: np.copyto(y, at(address, y.shape)))
    return stands


def failure(kind: str, message: str) -> Exception:
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    return getattr(state, kind)(message)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("form", ["canonical", "plugin"])
@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("graphs", [False, True])
def test_half_precision_runs_our_kernels(request: pytest.FixtureRequest, form: str, device: str, graphs: bool) -> None:
    file: Path = request.getfixturevalue(form)
    x = fakes.picture(5, 6)
    with open_engine(file, device=device, cuda_graphs=graphs) as engine:
        told = engine.describe()
        assert (told.device, told.form, told.notes, told.precision) == (CUDA, "kernel", (), "fp16")
        np.testing.assert_array_equal(engine.run(x), larger(x))
    (session,) = Session.made
    assert isinstance(session.model, bytes)
    assert session.model == rewritten(str(file), read_stamp(file), "9.0")
    assert session.providers[CUDA] == {
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": str(int(graphs)),
    }


@pytest.mark.usefixtures("cuda")
def test_without_kernels_nothing_is_rewritten_and_nothing_noted(canonical: Path) -> None:
    with open_engine(canonical, kernels=False) as engine:
        assert (engine.describe().form, engine.describe().notes) == ("canonical", ())
    (session,) = Session.made
    assert session.model == str(canonical)
    assert session.providers[CUDA] == {"use_tf32": "0"}


@pytest.mark.usefixtures("cuda")
def test_float32_is_not_for_our_kernels(onnx_file: Path) -> None:
    with open_engine(onnx_file) as engine:
        assert (engine.describe().form, engine.describe().notes) == ("mha", ())
    assert Session.made[0].model == str(onnx_file)


def test_what_keeps_our_kernels_out_is_noted(canonical: Path, cuda: Path) -> None:
    cuda.unlink()
    with open_engine(canonical, device="cuda") as engine:
        told = engine.describe()
    assert (told.device, told.form) == (CUDA, "canonical")
    assert told.notes == (
        f"{canonical}: runs ONNX Runtime's own operators, which take several times as long, since there is no "
        f"{cuda}: python -m plugins.build makes it (needs nvcc)",
    )
    assert Session.made[0].model == str(canonical)


def test_plugin_form_needs_our_kernels(plugin: Path, cuda: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = r"x2\.onnx: is in plugin form, which needs our kernels, but "
    for device in ("auto", "cuda"):
        with pytest.raises(EngineError, match=f"{needs}--no-kernels was given"):
            open_engine(plugin, device=device, kernels=False)
    monkeypatch.setattr("engines.driver.capability", lambda: "7.5")
    with pytest.raises(EngineError, match=f"{needs}ours need a GPU of compute capability 8.0"):
        open_engine(plugin)
    monkeypatch.setattr("engines.driver.capability", lambda: "8.0")
    cuda.unlink()
    with pytest.raises(EngineError, match=f"{needs}there is no .*ops.so"):
        open_engine(plugin)
    with pytest.raises(EngineError, match=r"is in plugin form, which needs our kernels, but there is no .*none\.so"):
        open_engine(plugin, device="cpu")
    assert Session.made == []


def test_graphs_need_our_kernels(canonical: Path, onnx_file: Path, cuda: Path) -> None:
    graphs = r"x2\.onnx: CUDA graphs need our kernels, but "
    with pytest.raises(EngineError, match=f"{graphs}--no-kernels was given"):
        open_engine(canonical, kernels=False, cuda_graphs=True)
    with pytest.raises(EngineError, match="CUDA graphs need our kernels, but it computes in fp32"):
        open_engine(onnx_file, cuda_graphs=True)
    with pytest.raises(EngineError, match="CUDA graphs need a GPU, but --device cpu was given"):
        open_engine(onnx_file, device="cpu", cuda_graphs=True)
    cuda.unlink()
    with pytest.raises(EngineError, match=f"{graphs}there is no .*ops.so"):
        open_engine(canonical, cuda_graphs=True)


@pytest.mark.usefixtures("cuda")
def test_a_session_that_cannot_be_made_is_no_silent_fallback(canonical: Path, plugin: Path) -> None:
    """Our kernels are tried first, and ONNX Runtime's own operators then."""
    Session.fails = [failure("Fail", "no such device\nmore") for _ in range(4)]
    with pytest.raises(EngineError, match=r"device cuda was asked for, but ONNX Runtime failed there \(no such device"):
        open_engine(canonical, device="cuda")
    with open_engine(canonical) as engine:
        told = engine.describe()
        assert (told.device, told.form) == (CPU, "canonical")
        assert told.notes == (f"{canonical}: runs on the CPU, since ONNX Runtime failed there (no such device)",)
    Session.fails = [failure("Fail", "no such device")]
    with pytest.raises(EngineError, match="which needs our kernels, but ONNX Runtime failed there .no such device"):
        open_engine(plugin)
    Session.fails = [failure("Fail", "no such operator")]
    with open_engine(canonical) as engine:
        told = engine.describe()
        assert (told.device, told.form) == (CUDA, "canonical")
        assert "own operators, which take several times as long, since ONNX Runtime failed there" in told.notes[0]


@pytest.mark.usefixtures("stands")
def test_the_cpu_runs_canonical_files_as_they_are(canonical: Path) -> None:
    with open_engine(canonical, device="cpu") as engine:
        assert (engine.describe().device, engine.describe().form) == (CPU, "canonical")
        assert np.isfinite(engine.run(fakes.picture(9, 10))).all()


# Recorded graphs


@pytest.fixture
def engine(canonical: Path, cuda: Path) -> ORTEngine:
    opened = open_engine(canonical, device="cuda", cuda_graphs=True)
    assert isinstance(opened, ORTEngine)
    return opened


def graphs_run() -> list[str | None]:
    """The graph of each run since this was asked."""
    (session,) = Session.made
    ran, session.ran = session.ran, []
    return ran


def test_a_shape_is_bound_and_recorded_once(engine: ORTEngine) -> None:
    shapes = [(9, 11), (4, 6), (9, 11), (11, 9), (4, 6)]
    for seed, shape in enumerate(shapes):
        x = fakes.picture(*shape, seed=seed)
        np.testing.assert_array_equal(engine.run(x), larger(x))
    both = np.concatenate([fakes.picture(4, 6), fakes.picture(4, 6, seed=1)])
    np.testing.assert_array_equal(engine.run(both), larger(both))
    # Each first run is made twice: it records, and it is the caller's.
    assert graphs_run() == ["0", "0", "1", "1", "0", "2", "2", "1", "3", "3"]
    assert len(Value.made) == 2 * 4


def test_any_strides_and_results_of_the_callers_own(engine: ORTEngine) -> None:
    x = fakes.picture(8, 9)
    first = engine.run(x)
    for view in (x[:, :, ::-1], x[..., ::-1], x.swapaxes(2, 3)):
        np.testing.assert_array_equal(engine.run(view), larger(view))
    np.testing.assert_array_equal(first, larger(x))


def test_no_more_than_so_many_are_recorded(engine: ORTEngine) -> None:
    pictures = [fakes.picture(3, 4 + i) for i in range(MOST_GRAPHS + 2)]
    for x in pictures:
        np.testing.assert_array_equal(engine.run(x), larger(x))
    recorded = [str(number) for number in range(MOST_GRAPHS) for _ in range(2)]
    assert graphs_run() == [*recorded, str(NOT_RECORDED), str(NOT_RECORDED)]
    buffers = [weakref.ref(value) for value in Value.made]
    Value.made.clear()
    gc.collect()
    assert sum(ref() is not None for ref in buffers) == 2 * MOST_GRAPHS, "those of the others are freed"
    for x in (pictures[-1], pictures[0]):
        np.testing.assert_array_equal(engine.run(x), larger(x))
    assert graphs_run() == [str(NOT_RECORDED), "0"]


NO_MEMORY = (
    "Non-zero status code returned while running FeedForward node. Name:'n' Status Message: /src/bfc_arena.cc:360 "
    "void* onnxruntime::BFCArena::AllocateRawInternal() Failed to allocate memory for requested buffer of size 99\n"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda: failure("Fail", NO_MEMORY), OutOfMemory),
        (lambda: failure("Fail", "node 5 is wrong"), EngineError),
        (MemoryError, OutOfMemory),
    ],
)
def test_a_first_run_that_fails_keeps_nothing(
    engine: ORTEngine, error: Callable[[], Exception], expected: type[EngineError]
) -> None:
    x, other = fakes.picture(5, 6), fakes.picture(7, 8)
    engine.run(other)
    (session,) = Session.made
    session.fail = error()
    for _ in range(2):
        with pytest.raises(EngineError) as info:
            engine.run(x)
        assert type(info.value) is expected
        assert "\n" not in str(info.value)
    with pytest.raises(EngineError):
        engine.run(other)
    session.fail = None
    del info
    buffers = [weakref.ref(value) for value in Value.made]
    Value.made.clear()
    session.ran.clear()
    gc.collect()
    assert sum(ref() is not None for ref in buffers) == 2
    np.testing.assert_array_equal(engine.run(x), larger(x))
    np.testing.assert_array_equal(engine.run(other), larger(other))
    assert graphs_run() == ["1", "1", "0"]


ARENA = "/src/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal() "


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"{ARENA}Failed to allocate memory for requested buffer of size 9\n", "out of memory on a picture of 11x9"),
        ("/src/cuda_call.cc:129 bool f() CUDA failure 2: out of memory ; GPU=0 ; hostname=h ; ", "out of memory on a"),
        ("Can't allocate memory on the device using this package of OnnxRuntime.", "ONNX Runtime failed on"),
    ],
)
@pytest.mark.usefixtures("cuda")
def test_buffers_that_cannot_be_had(canonical: Path, graphs: bool, message: str, expected: str) -> None:
    """ONNX Runtime raises Python's own RuntimeError then."""
    x = fakes.picture()
    with open_engine(canonical, cuda_graphs=graphs) as engine:
        Value.fail = RuntimeError(message)
        calls: list[Callable[[], object]] = [lambda: engine.timer(x).once()]
        if graphs:
            calls.append(lambda: engine.run(x))
        for call in calls:
            with pytest.raises(EngineError, match=expected) as info:
                call()
            assert isinstance(info.value, OutOfMemory) == ("memory on a picture" in str(info.value))
            assert "\n" not in str(info.value)
        Value.fail = None
        np.testing.assert_array_equal(engine.run(x), larger(x))


def test_threads_take_turns(engine: ORTEngine) -> None:
    pictures = [fakes.picture(5 + i % 3, 40 - i % 5, seed=i) for i in range(60)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(engine.run, pictures))
    finally:
        sys.setswitchinterval(interval)
    for x, y in zip(pictures, results, strict=True):
        np.testing.assert_array_equal(y, larger(x))


def test_a_closed_engine_keeps_no_buffers_and_no_session(engine: ORTEngine) -> None:
    timer = engine.timer(fakes.picture())
    timer.once()
    engine.run(fakes.picture(5, 6))
    kept = [weakref.ref(thing) for thing in (*Value.made, *Session.made)]
    engine.close()
    engine.close()
    for call in (timer.once, lambda: engine.run(fakes.picture())):
        with pytest.raises(EngineError, match="the engine is closed"):
            call()
    Value.made.clear()
    Session.made.clear()
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.usefixtures("cuda")
def test_the_timer_copies_nothing(canonical: Path, graphs: bool) -> None:
    x = fakes.picture()
    with open_engine(canonical, cuda_graphs=graphs) as engine:
        timer = engine.timer(x)
        timer.once()
        buffers = len(Value.made)
        for _ in range(3):
            assert timer.once() >= 0
        assert len(Value.made) == buffers == 2
        assert [value.copies for value in Value.made] == [0, 0]
        assert set(graphs_run()) == ({"0"} if graphs else {None})
        np.testing.assert_array_equal(engine.run(x), larger(x))
        with pytest.raises(EngineError, match="must be float32"):
            engine.timer(x.astype(np.float64))
    with pytest.raises(EngineError, match="the engine is closed"):
        timer.once()


def test_on_a_gpu_pytorch_times_what_is_not_recorded(engine: ORTEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime knows only when it started a node."""
    pytest.importorskip("torch")
    with pytest.raises(EngineError, match=r"kernels are timed by PyTorch, and PyTorch .* finds no usable GPU"):
        engine.profile(fakes.picture())
    graphs_run()

    def times(run: Callable[[], object], runs: int) -> list[LayerTime]:
        run()
        return [LayerTime("attention", float(runs))]

    monkeypatch.setattr("engines.pytorch.kernel_times", times)
    assert engine.profile(fakes.picture(), runs=2) == [LayerTime("attention", 2.0)]
    assert graphs_run() == [str(NOT_RECORDED)]


def test_a_description_says_whether_work_is_recorded(engine: ORTEngine, canonical: Path) -> None:
    assert engine.describe().cuda_graphs is True
    with open_engine(canonical, device="cuda") as other:
        assert other.describe().cuda_graphs is False
    with open_engine(canonical, runtime="onnxruntime", device="cpu") as on_cpu:
        assert on_cpu.describe().cuda_graphs is None


def test_closing_waits_for_a_run(engine: ORTEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is being computed when another thread closes the engine is still returned."""
    (session,) = Session.made
    started, go_on = threading.Event(), threading.Event()
    inner = session.run_with_iobinding

    def slow(binding: Binding, options: Any) -> None:
        started.set()
        assert go_on.wait(10)
        inner(binding, options)

    monkeypatch.setattr(session, "run_with_iobinding", slow)
    x = fakes.picture()
    with ThreadPoolExecutor(2) as pool:
        run = pool.submit(engine.run, x)
        assert started.wait(10)
        close = pool.submit(engine.close)
        go_on.set()
        np.testing.assert_array_equal(run.result(10), larger(x))
        close.result(10)
