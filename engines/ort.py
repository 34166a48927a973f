"""ONNX Runtime as an engine, on the CPU or through its CUDA provider. It never imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines import base, driver, memory, ort_kernels, ort_layers, pinned
from engines.base import HALVES, Description, Engine, EngineError, LayerTime, NotInstalled, Timer
from engines.choice import has_amx
from engines.metadata import Stamp, read_shapes, read_stamp
from engines.running import Runner
from plugins import library
from plugins.operators import OPERATORS
from ribsr.base.errors import first_line, printable
from ribsr.base.files import temporary_folder
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Limits, Size

if TYPE_CHECKING:
    import onnx
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

KERNEL_OPTIONS = {"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"}
"""Of the CUDA provider where our kernels do the work: no memory kept in advance, no search at every new size."""

NOT_RECORDED = -1
"""The number of a CUDA graph that means none to ONNX Runtime."""

MOST_GRAPHS = 8
"""Sizes that are recorded as CUDA graphs: ONNX Runtime keeps each until the session ends."""

HEAVY = frozenset({"Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "MultiHeadAttention", "Attention"}) | {
    operator.name for operator in OPERATORS
}
"""Operators that take nearly all of the time. Shape arithmetic belongs on the CPU whatever the device."""

_NO_MEMORY = re.compile(
    r"(^|: )std::bad_alloc$|\.cc:\d+ .*\b(Failed to allocate memory for requested buffer of size|"
    r"Available memory of \d+ is smaller than requested bytes of) \d+\s*$|"
    r"(^|[ :])(CUDA failure 2: out of memory|CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED) ; GPU=-?\d+ ;"
)
"""What the allocators say of the CPU's and the GPU's memory, and CUDA where it allocates by itself."""


class ORTEngine(Engine):
    """An .onnx file of this toolkit run by ONNX Runtime; `engines.open_engine` says what the arguments mean.

    On a GPU, files in half precision run our kernels, on a CPU all of them, if the library is built and kernels is not
    False: they are rewritten in memory (`engines.ort_kernels`). The description's form is `kernel` then, and a CPU's
    device names the instruction set. precision: bf16 for a float32 file on a CPU: products of bfloat16.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        tf32: bool = False,
        kernels: bool = True,
        cuda_graphs: bool = False,
    ):
        base.check_choice("device", device, base.DEVICES)
        self._path = str(path)
        self._stamp = stamp = read_stamp(path)
        bfloat16 = base.precision_of(stamp, self._path, precision) != stamp.precision
        ort = import_runtime()
        opened = _open(ort, self._path, stamp, _Wishes(device, threads, bfloat16, tf32, kernels, cuda_graphs))
        self._session: onnxruntime.InferenceSession | None = opened.session
        self._threads, self._bfloat16 = threads, bfloat16
        self._providers = opened.providers
        self._description = _describe(ort, self._path, opened)
        if not self._on_cpu:
            self._description = replace(self._description, cuda_graphs=cuda_graphs)
        # On a GPU it keeps handles and graphs for each thread, and a run is soon over.
        self._runner = Runner(in_background=self._on_cpu)
        self._results = pinned.Pool()  # on a GPU
        self._graphs = _Graphs(stamp.scale, self._runner) if cuda_graphs else None
        self._network = memory.Network.of(read_shapes(path), stamp.windows)
        self._held = 0
        self._layers: _Shown | None = None

    @property
    def _on_cpu(self) -> bool:
        return not self._description.on_gpu

    def run(self, x: np.ndarray) -> np.ndarray:
        base.check_input(x, self._description)
        if (graphs := self._graphs) is None:
            infer = self._infer if self._on_cpu else self._infer_on_gpu
            y = self._guarded(x, lambda session: infer(session, x))
        else:
            y = self._results.array(self._result_shape(x))
            self._guarded(x, lambda session: graphs.use(session, x, lambda bound: bound.run(x, y)))
        # A recorded run keeps all that it took: nothing of that is for other sizes.
        recorded = graphs is not None and graphs.has(x.shape)
        held = memory.FIRST_RUN["onnxruntime"] if recorded else self._total(Size.of(x), len(x))
        self._held = max(self._held, held)
        return y

    def _infer(self, session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
        import onnxruntime as ort

        options = ort.RunOptions()
        outputs: Any = self._runner.run(options, lambda: session.run(["output"], {"input": x}, options))
        return outputs[0]

    def _infer_on_gpu(self, session: onnxruntime.InferenceSession, x: np.ndarray) -> np.ndarray:
        import onnxruntime as ort

        options, binding = ort.RunOptions(), session.io_binding()
        x, y = np.ascontiguousarray(x), self._results.array(self._result_shape(x))
        binding.bind_input("input", "cpu", 0, np.float32, x.shape, x.ctypes.data)
        binding.bind_output("output", "cpu", 0, np.float32, y.shape, y.ctypes.data)
        self._runner.run(options, lambda: session.run_with_iobinding(binding, options))
        return y

    def _result_shape(self, x: np.ndarray) -> tuple[int, ...]:
        return (*x.shape[:2], *Size.of(x).times(self._description.scale))

    def needs(self, size: Size, batch: int = 1) -> int | None:
        if self._graphs is not None and self._graphs.has((batch, 3, *size)):
            return 0
        return max(0, self._total(size, batch) - self._held)

    def _total(self, size: Size, batch: int) -> int:
        """Bytes of a run whose arena is empty: the first."""
        told, threads = self._description, self._threads or os.cpu_count() or 1
        if self._on_cpu:
            return batch * memory.onnxruntime_on_cpu(self._network, told.form, told.precision, size, threads)
        each = memory.onnxruntime_on_gpu(self._network, told.form, told.precision, size)
        return batch * each + memory.FIRST_RUN["onnxruntime"]

    def device_memory(self) -> int | None:
        if self._on_cpu:
            return None
        try:
            return driver.free_memory()
        except driver.NoGPU:
            return None

    def release(self) -> None:
        """A run on the smallest picture, after which ONNX Runtime drops what its arena does not need."""
        loaded = 0 if self._on_cpu else memory.FIRST_RUN["onnxruntime"]
        self._held = min(self._held, loaded)
        self._results.clear()
        limits, batch = self._description.limits, self._description.batch or 1
        if limits.fixed or self._graphs is not None:  # as large as any other
            return
        x = np.zeros((batch, 3, *limits.nearest(Size(1, 1))), np.float32)
        with contextlib.suppress(EngineError):
            self._guarded(x, lambda session: _shrink(session, x))
        memory.trim_heap()

    def _guarded(self, x: np.ndarray, use: Callable[[onnxruntime.InferenceSession], Any]) -> Any:
        """use(session), with the runtime's own exceptions as EngineErrors."""
        session = self._session
        if session is None:
            raise base.closed(self._path)
        try:
            return use(session)
        except CancelledError:
            raise base.closed(self._path) from None
        except MemoryError:
            raise base.out_of_memory(self._path, x) from None
        except (*_runtime_errors(), RuntimeError) as error:  # the latter where it makes values on the GPU
            if _is_out_of_memory(error):
                raise base.out_of_memory(self._path, x) from None
            raise EngineError(f"{self._path}: ONNX Runtime failed on {list(x.shape)} ({first_line(error)})") from error

    def timer(self, x: np.ndarray) -> Timer:
        if self._on_cpu:
            return super().timer(x)
        base.check_input(x, self._description)
        graphs, scale = self._graphs, self._description.scale
        if graphs is None:
            bound = self._guarded(x, lambda session: _Bound(session, self._runner, x, scale))
            once = base.host_clock(lambda: self._guarded(x, lambda _: bound.once()))
        else:
            once = base.host_clock(
                lambda: self._guarded(x, lambda session: graphs.use(session, x, lambda bound: bound.once()))
            )
        return Timer("host clock around a synchronous run, pictures on the GPU", once)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`; on a GPU kernels by PyTorch's profiler: ONNX Runtime knows only when it started a node.

        Raises EngineError there without a PyTorch for GPUs.
        """
        base.check_input(x, self._description)
        if self._on_cpu:
            return _layer_times(self._guarded(x, lambda _: self._trace(x, 1 + runs)), runs)
        from engines.pytorch import kernel_times

        graph, scale = None if self._graphs is None else NOT_RECORDED, self._description.scale
        bound = self._guarded(x, lambda session: _Bound(session, self._runner, x, scale, graph))
        return kernel_times(lambda: self._guarded(x, lambda _: bound.once()), runs)

    def layers(self) -> list[str]:
        """As `Engine.layers`; with our kernels, those whose outputs they write: less than without."""
        with self._looking_into():
            return list(self._shown().tensors)

    def layer_outputs(self, x: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        base.check_input(x, self._description)
        with self._looking_into():
            shown = self._shown()
            content = ort_layers.with_outputs(shown.model, [shown.tensors[name] for name in names])
            return self._guarded(x, lambda _: self._computed(x, shown, content, names))

    @contextlib.contextmanager
    def _looking_into(self) -> Iterator[None]:
        """What keeps a second session, of all outputs, from being made as an EngineError."""
        try:
            yield
        except (_NotOnCUDA, ort_kernels.NoKernels) as error:
            raise EngineError(f"{self._path}: its layers cannot be shown, since {error}") from None

    def _computed(self, x: np.ndarray, shown: _Shown, content: bytes, names: Sequence[str]) -> dict[str, np.ndarray]:
        import onnxruntime as ort

        session = _create(
            ort, self._path, self._providers, self._threads, own=content, kernels=self._description.form == "kernel"
        )
        outputs: Any = session.run([shown.tensors[name] for name in names], {"input": x})
        found = {name: y.astype(np.float32) for name, y in zip(names, outputs, strict=True)}
        return {name: np.moveaxis(y, -1, 1) if shown.tensors[name] in shown.turned else y for name, y in found.items()}

    def _shown(self) -> _Shown:
        """The file as it is run, and which tensors of it are layers' outputs. Raises EngineError without onnx."""
        if self._layers is None:
            try:
                import onnx
            except ModuleNotFoundError:
                raise NotInstalled(
                    f"to look into a file needs onnx, which is not installed: {pip_install('ort')}"
                ) from None
            model, found = onnx.load(self._path), set[str]()
            named = ort_layers.tensors(model)
            if (own := self._rewritten()) is not None:
                model = onnx.load_from_string(own)
                written = {name for node in model.graph.node for name in node.output}
                named = {module: tensor for module, tensor in named.items() if tensor in written}
                found = ort_layers.turned(model) - {ort_layers.OUTPUT}
            self._layers = _Shown(model, named, found)
        return self._layers

    def _rewritten(self) -> bytes | None:
        """The file as our kernels run it; None: they do not. Raises NoKernels."""
        if self._description.form != "kernel":
            return None
        if self._on_cpu:
            return ort_kernels.rewritten_for_cpu(self._path, self._stamp, self._bfloat16)
        return ort_kernels.rewritten(self._path, self._stamp, driver.capability())

    def _trace(self, x: np.ndarray, runs: int) -> list[dict[str, Any]]:
        """The events of runs in a session of their own, since a session is traced from its start or never."""
        import onnxruntime as ort

        with temporary_folder() as folder:
            session = _create(
                ort, self._path, self._providers, self._threads, profile=folder / "profile", own=self._rewritten()
            )
            for _ in range(runs):
                self._infer(session, x)
            return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))

    def close(self) -> None:
        self._session = None
        self._runner.close()
        self._results.clear()
        if self._graphs is not None:
            self._graphs.close()


@dataclass(frozen=True)
class _Shown:
    """A model whose tensors can be seen. tensors: of layers, by their names. turned: those that are channels-last."""

    model: onnx.ModelProto
    tensors: dict[str, str]
    turned: set[str]


def _shrink(session: onnxruntime.InferenceSession, x: np.ndarray) -> None:
    """Runs x, and has all arenas dropped that are empty then."""
    import onnxruntime as ort

    options = ort.RunOptions()
    arena = "cpu:0" if session.get_providers()[0] == CPU else "gpu:0"
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
    session.run(["output"], {"input": x}, options)


class _Bound:
    """Buffers on the GPU for one size, and how they are bound to a session.

    graph: the number under which ONNX Runtime records the work at the first run, and repeats it later; None: it does
    not.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        runner: Runner,
        x: np.ndarray,
        scale: int,
        graph: int | None = None,
    ):
        import onnxruntime as ort

        shape = [*x.shape[:2], *Size.of(x).times(scale)]
        self._session, self._runner = session, runner
        self._input = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x), "cuda", 0)
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input("input", self._input)
        self._binding.bind_ortvalue_output("output", self._output)
        self._options = ort.RunOptions()
        if graph is not None:
            self._options.add_run_config_entry("gpu_graph_id", str(graph))

    def once(self) -> None:
        """Runs the network on what is in the input buffer; returns when the work is done."""
        self._runner.run(self._options, lambda: self._session.run_with_iobinding(self._binding, self._options))

    def run(self, x: np.ndarray, y: np.ndarray) -> None:
        """Puts what the network makes of x into y, which is contiguous."""
        self._input.update_inplace(np.ascontiguousarray(x))
        self.once()
        driver.copy_to_host(self._output.data_ptr(), y)


class _Graphs:
    """The work of repeated sizes as CUDA graphs, all of it in one thread: ONNX Runtime records for each thread anew.

    A size is recorded at its first run, during which no other thread may use the GPU in ways that wait for it.
    """

    def __init__(self, scale: int, runner: Runner):
        self._scale, self._runner = scale, runner
        self._thread = ThreadPoolExecutor(1, "ribsr-graphs")
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def has(self, shape: tuple[int, ...]) -> bool:
        """Whether the work for inputs of this shape is recorded."""
        return shape in self._bound

    def use(self, session: onnxruntime.InferenceSession, x: np.ndarray, use: Callable[[_Bound], Any]) -> Any:
        """use(the buffers for x), in that thread. It must leave nothing of what the next run overwrites."""
        return self._thread.submit(lambda: use(self._bound.get(x.shape) or self._bind(session, x))).result()

    def _bind(self, session: onnxruntime.InferenceSession, x: np.ndarray) -> _Bound:
        if len(self._bound) >= MOST_GRAPHS:
            return _Bound(session, self._runner, x, self._scale, NOT_RECORDED)
        bound = _Bound(session, self._runner, x, self._scale, len(self._bound))
        bound.once()  # what fails here is not kept
        self._bound[x.shape] = bound
        return bound

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._bound.clear()


def _layer_times(events: list[dict[str, Any]], runs: int) -> list[LayerTime]:
    """Mean times of nodes in ONNX Runtime's trace of 1 + runs, the first not counted. Nodes may share a name."""
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = (event["name"].removesuffix("_kernel_time"), str(event.get("args", {}).get("op_name", "")))
            times.setdefault(node, []).append(event["dur"] / 1e3)  # from µs
    return [
        LayerTime(printable(name), sum(each[len(each) // (1 + runs) :]) / runs, printable(operator))
        for (name, operator), each in times.items()
    ]


FATAL = 4
"""The severity of log lines that are shown."""

OLDEST = (1, 16)
"""ONNX Runtime 1.15 executes these files without a word, and errs by 0.17."""

FIRST_FOR_NUMPY_2 = (1, 19)

FIRST_FOR_CPU_KERNELS = (1, 17)
"""The first that lends custom operators its threads."""


def import_runtime() -> Any:
    """ONNX Runtime's module. Raises EngineError where it is missing or too old."""
    brings = f"{pip_install('ort')} (CPU) or {pip_install('ort-gpu')}"
    _check_numpy()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise NotInstalled(f"running an .onnx file needs ONNX Runtime, which is not installed: {brings}") from None
    if base.release(onnxruntime.__version__) < OLDEST:
        raise EngineError(f"ONNX Runtime {onnxruntime.__version__} computes these files wrongly: {brings}")
    # What is part of no session logs here, such as cuDNN when it tries one plan after another. Errors are exceptions.
    onnxruntime.set_default_logger_severity(FATAL)
    return onnxruntime


def check_cuda() -> None:
    """Opens a session of one node on the GPU. Raises EngineError where that fails, and says why."""
    ort = import_runtime()
    if CUDA not in ort.get_available_providers():
        raise EngineError(_no_provider(ort))
    driver.capability()  # ONNX Runtime would complain of its libraries first
    complaint = _preload(ort)
    options = _session_options(ort, None, None, patterns=False)
    try:
        session = ort.InferenceSession(_IDENTITY, options, providers=[CUDA, CPU], enable_fallback=0)
    except (*_runtime_errors(), ValueError, RuntimeError) as error:
        raise EngineError(f"ONNX Runtime failed on the GPU ({first_line(error)})") from None
    if CUDA not in session.get_providers():
        raise EngineError(_why_dropped(complaint))


_IDENTITY = (
    b'\x08\x08:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""An ONNX file: y = Identity(x) of one number, opset 17."""


def _no_provider(ort: Any) -> str:
    return (
        f"this ONNX Runtime ({ort.__version__}) has no CUDA provider; "
        f"pip uninstall onnxruntime && {pip_install('ort-gpu')}"
    )


def _check_numpy() -> None:
    """Raises EngineError where ONNX Runtime would end its import with a page of text and no message."""
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            release = importlib.metadata.version(name)
            if base.release(release) < FIRST_FOR_NUMPY_2 and base.release(np.__version__) >= (2,):
                raise EngineError(
                    f"ONNX Runtime {release} was made for NumPy 1, and this is {np.__version__}: pip install 'numpy<2'"
                )


def _session_options(ort: Any, threads: int | None, profile: Path | None, patterns: bool) -> Any:
    """The one place where sessions are configured. profile: where a trace goes, if there is to be one.

    patterns: whether memory is planned by size. Plans for sizes seen before take new memory for all of a run at once,
    beside what is held: twice as much.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = patterns
    options.log_severity_level = FATAL  # errors come as exceptions; the log would repeat them on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


@dataclass(frozen=True)
class _Wishes:
    """What the caller of `open_engine` asked for."""

    device: str
    threads: int | None
    bfloat16: bool
    tf32: bool
    kernels: bool
    cuda_graphs: bool


@dataclass(frozen=True)
class _Opened:
    """A session and what it computes: the file's stamp, but for what was asked for.

    providers: those asked for, and their options without CUDA graphs. isa: the instruction set of our kernels, on a
    CPU. notes: for the user: the GPU and our kernels are used, or it is said why not.
    """

    session: onnxruntime.InferenceSession
    stamp: Stamp
    providers: dict[str, dict[str, str]]
    isa: str | None = None
    notes: tuple[str, ...] = ()


def _open(ort: Any, path: str, stamp: Stamp, wishes: _Wishes) -> _Opened:
    """A session on the device asked for."""
    available = CUDA in ort.get_available_providers()
    if wishes.device == "cuda" and not available:
        raise EngineError(f"device cuda was asked for, but {_no_provider(ort)}, or use --device cpu")
    reason = "--device cpu was given" if available else "this ONNX Runtime has no CUDA provider"
    notes = ()
    if wishes.device != "cpu" and available:
        try:
            return _open_on_cuda(ort, path, stamp, wishes)
        except _NotOnCUDA as error:
            if wishes.device == "cuda":
                raise EngineError(f"{path}: device cuda was asked for, but {error}; or use --device cpu") from None
            reason, notes = str(error), (f"{path}: runs on the CPU, since {error}",)
    if wishes.tf32:
        base.check_tf32(path, stamp.precision, on_gpu=False)
    if wishes.cuda_graphs:
        raise EngineError(f"{path}: CUDA graphs need a GPU, but {reason}; leave out --cuda-graphs")
    return _open_on_cpu(ort, path, stamp, wishes, notes)


def _open_on_cpu(ort: Any, path: str, stamp: Stamp, wishes: _Wishes, notes: tuple[str, ...]) -> _Opened:
    """A session of the CPU provider, of our kernels where they can be used. notes: of what came before."""
    reason = "--no-kernels was given"
    if wishes.kernels:
        try:
            if base.release(ort.__version__) < FIRST_FOR_CPU_KERNELS:
                raise ort_kernels.NoKernels(f"ONNX Runtime {ort.__version__} lends them no threads: 1.17 or later does")
            own = ort_kernels.rewritten_for_cpu(path, stamp, wishes.bfloat16)
        except ort_kernels.NoKernels as error:
            reason = str(error)
        else:
            session = _create(ort, path, {CPU: {}}, wishes.threads, own=own)
            told = replace(stamp, form="kernel", precision="bf16" if wishes.bfloat16 else stamp.precision)
            if wishes.bfloat16 and has_amx():
                notes = (*notes, f"{path}: on CPUs with AMX products of bfloat16 take 1.5 times as long as float32's")
            return _Opened(session, told, {CPU: {}}, library.cpu_isas()[-1], notes)
    if wishes.bfloat16:
        raise EngineError(f"{path}: precision bf16 needs our kernels, but {reason}")
    if stamp.form == "plugin":
        raise EngineError(f"{path}: is in plugin form, which needs our kernels, but {reason}")
    if wishes.kernels and stamp.form in ort_kernels.FORMS and library.cpu_path().exists():
        notes = (*notes, f"{path}: runs ONNX Runtime's own operators, which take longer than ours, since {reason}")
    return _Opened(_create(ort, path, {CPU: {}}, wishes.threads), stamp, {CPU: {}}, notes=notes)


def _open_on_cuda(ort: Any, path: str, stamp: Stamp, wishes: _Wishes) -> _Opened:
    """A session of the CUDA provider, of our kernels where they can be used. Raises _NotOnCUDA."""
    if wishes.bfloat16:
        raise EngineError(f"{path}: precision bf16 of a float32 file is for CPUs: give --device cpu")
    try:
        capability = driver.capability()
    except driver.NoGPU as error:  # ONNX Runtime would complain of its libraries first
        raise _NotOnCUDA(str(error)) from None
    complaint = _preload(ort)
    if wishes.tf32:
        base.check_tf32(path, stamp.precision, on_gpu=True)
        stamp = replace(stamp, precision="tf32")
    # By default the CUDA provider multiplies float32 in TF32, and errs by 1e-3 where 1e-6 is possible.
    options, reason = {"use_tf32": str(int(wishes.tf32))}, "--no-kernels was given"
    if wishes.kernels and stamp.precision in HALVES:
        try:
            own = ort_kernels.rewritten(path, stamp, capability)
            graphs = {"enable_cuda_graph": str(int(wishes.cuda_graphs))}
            session = _create(ort, path, {CUDA: options | KERNEL_OPTIONS | graphs, CPU: {}}, wishes.threads, own=own)
        except (ort_kernels.NoKernels, _NotOnCUDA) as error:
            reason = str(error)
        else:
            notes = _placed(path, session, complaint)
            own_options = {CUDA: options | KERNEL_OPTIONS, CPU: {}}
            return _Opened(session, replace(stamp, form="kernel"), own_options, notes=tuple(notes))
    if stamp.form == "plugin":
        raise EngineError(f"{path}: is in plugin form, which needs our kernels, but {reason}")
    if wishes.cuda_graphs:
        reason = reason if stamp.precision in HALVES else f"it computes in {stamp.precision}"
        raise EngineError(f"{path}: CUDA graphs need our kernels, but {reason}; leave out --cuda-graphs")
    session = _create(ort, path, {CUDA: options, CPU: {}}, wishes.threads)
    notes = _placed(path, session, complaint)
    if wishes.kernels and stamp.precision in HALVES:
        notes.append(f"{path}: runs ONNX Runtime's own operators, which take several times as long, since {reason}")
    return _Opened(session, stamp, {CUDA: options, CPU: {}}, notes=tuple(notes))


def _preload(ort: Any) -> str:
    """Loads the CUDA and cuDNN libraries of NVIDIA's wheels, which then need no LD_LIBRARY_PATH.

    Returns ONNX Runtime's first complaint, which it prints, or nothing.
    """
    if not hasattr(ort, "preload_dlls"):  # ONNX Runtime before 1.21
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ort.preload_dlls()
    lines = printed.getvalue().strip().splitlines()
    return lines[0] if lines else ""


class _NotOnCUDA(Exception):
    """Why the CUDA provider does not run the model."""


def _create(
    ort: Any,
    path: str,
    providers: dict[str, dict[str, str]],
    threads: int | None,
    *,
    profile: Path | None = None,
    own: bytes | None = None,
    kernels: bool = True,
) -> onnxruntime.InferenceSession:
    """A session. providers: each with its options. own: what is run instead of the file; kernels: it is for ours."""
    kernels = kernels and own is not None
    options = _session_options(ort, threads, profile, patterns=CUDA in providers and not kernels)
    try:
        if kernels:
            operators = library.onnxruntime_path() if CUDA in providers else library.cpu_path()
            options.register_custom_ops_library(str(operators.resolve()))
        return ort.InferenceSession(own or path, options, providers=list(providers.items()), enable_fallback=0)
    except (*_runtime_errors(), ValueError, RuntimeError) as error:
        if CUDA in providers:
            raise _NotOnCUDA(f"ONNX Runtime failed there ({first_line(error)})") from None
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)}); if the file is damaged, "
            "export it again"
        ) from error


def _placed(path: str, session: onnxruntime.InferenceSession, complaint: str) -> list[str]:
    """Raises _NotOnCUDA unless the session is on the GPU; notes of what is not. complaint: of the CUDA libraries."""
    if CUDA not in session.get_providers():
        raise _NotOnCUDA(_why_dropped(complaint))
    return _check_placement(path, session)


def _check_placement(path: str, session: onnxruntime.InferenceSession) -> list[str]:
    """Raises _NotOnCUDA unless the GPU does the heavy work; notes operators that stay on the CPU all the same."""
    try:
        subgraphs = session.get_provider_graph_assignment_info()
    except (AttributeError, *_runtime_errors()):  # before ONNX Runtime 1.24, or a build that does not record it
        return []
    placed = [(graph.ep_name, node.op_type) for graph in subgraphs for node in graph.get_nodes()]
    heavy = [(provider, op) for provider, op in placed if op in HEAVY]
    on_cpu = sorted({op for provider, op in heavy if provider != CUDA})
    if heavy and not any(provider == CUDA for provider, _ in heavy):
        raise _NotOnCUDA(f"its CUDA provider takes none of the model's {', '.join(on_cpu)} nodes")
    return [f"{path}: {op} nodes run on the CPU, since the CUDA provider does not take them" for op in on_cpu]


def _why_dropped(complaint: str) -> str:
    """Why ONNX Runtime dropped its CUDA provider: it tells its log only, so what usually stops it is tried here.

    complaint: what it said when it loaded the CUDA libraries.
    """
    if complaint:
        return f"ONNX Runtime's CUDA provider lacks a library: {complaint}"
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return (
            "ONNX Runtime's CUDA provider lacks cuDNN 9 (libcudnn.so.9): pip install nvidia-cudnn-cu13, or "
            "pip install nvidia-cudnn-cu12 for CUDA 12"
        )
    return "ONNX Runtime dropped its CUDA provider and gives no reason"


def _runtime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions: they have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    found = (value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception))
    return tuple(found)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether a run failed for want of memory, by the words of ONNX Runtime's allocators: no status code says so.

    What comes before is left out, since names of nodes may be anything: `Name:'…' Status Message: …`.
    """
    if type(error).__name__ not in ("Fail", "RuntimeException", "EPFail", "RuntimeError"):
        return False
    return bool(_NO_MEMORY.search(str(error).rpartition("' Status Message: ")[2]))


def _describe(ort: Any, path: str, opened: _Opened) -> Description:
    session = opened.session
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = ([entry.name for entry in inputs], [entry.name for entry in outputs])
    if names != (["input"], ["output"]) or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise EngineError(f"{path}: its stamp is this toolkit's but its inputs and outputs are not; export it again")
    provider = session.get_providers()[0]
    b, _, h, w = (size if isinstance(size, int) else None for size in inputs[0].shape)
    return Description(
        **vars(opened.stamp),
        path=path,
        runtime="onnxruntime",
        runtime_version=ort.__version__,
        device=f"{provider} ({opened.isa})" if opened.isa else provider,
        batch=b,
        limits=Limits.only(h, w),
        notes=opened.notes,
    )
