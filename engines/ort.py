"""ONNX Runtime as an engine, on the CPU or through its CUDA provider. It never imports torch."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from engines import base
from engines.base import Description, Engine, EngineError, LayerTime, NotInstalled, Timer
from engines.metadata import Stamp, read_stamp
from ribsr.base.errors import first_line
from ribsr.base.sizes import Limits

if TYPE_CHECKING:
    import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

PROVIDER_OPTIONS = {CUDA: {"use_tf32": "0"}}
"""float32 is float32: by default the CUDA provider multiplies in TF32, and errs by 1e-3 where 1e-6 is possible."""

HEAVY = frozenset({"Conv", "FusedConv", "Gemm", "MatMul", "FusedMatMul", "MultiHeadAttention", "Attention"})
"""Operators that take nearly all of the time. Shape arithmetic belongs on the CPU whatever the device."""

_NO_MEMORY = re.compile(
    r"(^|: )std::bad_alloc$|\.cc:\d+ .*\b(Failed to allocate memory for requested buffer of size|"
    r"Available memory of \d+ is smaller than requested bytes of) \d+\s*$|"
    r"(^|[ :])(CUDA failure 2: out of memory|CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED) ; GPU=-?\d+ ;"
)
"""What the allocators say of the CPU's and the GPU's memory, and CUDA where it allocates by itself."""


class ORTEngine(Engine):
    """An .onnx file of this toolkit run by ONNX Runtime; `engines.open_engine` says what the arguments mean."""

    def __init__(self, path: str | Path, *, device: str = "auto", threads: int | None = None):
        base.check_choice("device", device, base.DEVICES)
        self._path = str(path)
        stamp = read_stamp(path)
        if stamp.form == "plugin":
            raise EngineError(
                f"{path}: is in plugin form, which only TensorRT runs: build a plan with python -m export.trt, "
                "or export again with --form mha for ONNX Runtime"
            )
        ort = _import_runtime()
        session, notes = _open(ort, self._path, device, threads)
        self._session: onnxruntime.InferenceSession | None = session
        self._threads = threads
        self._description = _describe(ort, self._path, session, stamp, notes)

    def run(self, x: np.ndarray) -> np.ndarray:
        base.check_input(x, self._description)
        return self._guarded(x, lambda session: session.run(["output"], {"input": x})[0])

    def _guarded(self, x: np.ndarray, use: Callable[[onnxruntime.InferenceSession], Any]) -> Any:
        """use(session), with the runtime's own exceptions as EngineErrors."""
        session = self._session
        if session is None:
            raise base.closed(self._path)
        try:
            return use(session)
        except MemoryError:
            raise base.out_of_memory(self._path, x) from None
        except _runtime_errors() as error:
            if _is_out_of_memory(error):
                raise base.out_of_memory(self._path, x) from None
            raise EngineError(f"{self._path}: ONNX Runtime failed on {list(x.shape)} ({first_line(error)})") from error

    def timer(self, x: np.ndarray) -> Timer:
        if not self._description.device.startswith(CUDA):
            return super().timer(x)
        import onnxruntime as ort

        base.check_input(x, self._description)

        def bind(session: onnxruntime.InferenceSession) -> onnxruntime.IOBinding:
            binding = session.io_binding()
            binding.bind_ortvalue_input("input", ort.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
            binding.bind_output("output", "cuda", 0)
            return binding

        binding = self._guarded(x, bind)
        once = base.host_clock(lambda: self._guarded(x, lambda session: session.run_with_iobinding(binding)))
        return Timer("host clock around a synchronous run, pictures on the GPU", once)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        """As `Engine.profile`; an EngineError on a GPU, of which ONNX Runtime knows only when it started a node."""
        base.check_input(x, self._description)
        if self._description.device != CPU:
            raise EngineError(f"{self._path}: ONNX Runtime times nodes on a CPU only; give --device cpu")
        return _layer_times(self._guarded(x, lambda _: self._trace(x, 1 + runs)), runs)

    def _trace(self, x: np.ndarray, runs: int) -> list[dict[str, Any]]:
        """The events of runs in a session of their own, since a session is traced from its start or never."""
        import onnxruntime as ort

        with TemporaryDirectory() as folder:
            session = _create(ort, self._path, [CPU], self._threads, profile=Path(folder) / "profile")
            for _ in range(runs):
                session.run(["output"], {"input": x})
            return json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))

    def close(self) -> None:
        self._session = None


def _layer_times(events: list[dict[str, Any]], runs: int) -> list[LayerTime]:
    """Mean times of nodes in ONNX Runtime's trace of 1 + runs, the first not counted. Nodes may share a name."""
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)  # from µs
    return [LayerTime(name, sum(each[len(each) // (1 + runs) :]) / runs) for name, each in times.items()]


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise NotInstalled(
            "running an .onnx file needs ONNX Runtime, which is not installed: pip install 'ribsr[ort]' (CPU) "
            "or 'ribsr[ort-gpu]'"
        ) from None
    return onnxruntime


def _session_options(ort: Any, threads: int | None, profile: Path | None) -> Any:
    """The one place where sessions are configured. profile: where a trace goes, if there is to be one."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _open(ort: Any, path: str, device: str, threads: int | None) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """A session on the device asked for, and notes for the user: the GPU is used, or it is said why not."""
    if device == "cpu" or (device == "auto" and CUDA not in ort.get_available_providers()):
        return _create(ort, path, [CPU], threads), []
    if CUDA not in ort.get_available_providers():
        raise EngineError(
            f"device cuda was asked for, but this ONNX Runtime ({ort.__version__}) has no CUDA provider; "
            "pip uninstall onnxruntime && pip install 'ribsr[ort-gpu]', or use --device cpu"
        )
    try:
        _check_driver()
        complaint = _preload(ort)
        session = _create(ort, path, [CUDA, CPU], threads)
        if CUDA not in session.get_providers():
            raise _NotOnCUDA(_why_dropped(complaint))
        return session, _check_placement(path, session)
    except _NotOnCUDA as error:
        if device == "cuda":
            raise EngineError(f"{path}: device cuda was asked for, but {error}; or use --device cpu") from None
        return _create(ort, path, [CPU], threads), [f"{path}: runs on the CPU, since {error}"]


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
    ort: Any, path: str, providers: list[str], threads: int | None, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    configured = [(name, PROVIDER_OPTIONS.get(name, {})) for name in providers]
    try:
        return ort.InferenceSession(
            path, _session_options(ort, threads, profile), providers=configured, enable_fallback=0
        )
    except (*_runtime_errors(), ValueError, RuntimeError) as error:
        if CUDA in providers:
            raise _NotOnCUDA(f"ONNX Runtime failed there ({first_line(error)})") from None
        raise EngineError(
            f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)}); if the file is damaged, "
            "export it again"
        ) from error


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


def _check_driver() -> None:
    """Raises _NotOnCUDA where no driver or GPU is; ONNX Runtime would complain of its libraries first."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _NotOnCUDA("there is no NVIDIA driver here (libcuda.so.1)") from None
    if code := driver.cuInit(0):
        raise _NotOnCUDA(f"the NVIDIA driver finds no usable GPU (cuInit gives {code})")


def _why_dropped(complaint: str) -> str:
    """Why ONNX Runtime dropped its CUDA provider: it tells its log only, so what usually stops it is tried here.

    complaint: what it said when it loaded the CUDA libraries.
    """
    if complaint:
        return f"ONNX Runtime's CUDA provider lacks a library: {complaint}"
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return "ONNX Runtime's CUDA provider lacks cuDNN 9 (libcudnn.so.9): pip install nvidia-cudnn-cu13 or -cu12"
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
    if type(error).__name__ not in ("Fail", "RuntimeException", "EPFail"):
        return False
    return bool(_NO_MEMORY.search(str(error).rpartition("' Status Message: ")[2]))


def _describe(
    ort: Any, path: str, session: onnxruntime.InferenceSession, stamp: Stamp, notes: list[str]
) -> Description:
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = ([entry.name for entry in inputs], [entry.name for entry in outputs])
    if names != (["input"], ["output"]) or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        raise EngineError(f"{path}: its stamp is this toolkit's but its inputs and outputs are not; export it again")
    b, _, h, w = (size if isinstance(size, int) else None for size in inputs[0].shape)
    return Description(
        **vars(stamp),
        path=path,
        runtime="onnxruntime",
        runtime_version=ort.__version__,
        device=session.get_providers()[0],
        batch=b,
        limits=Limits.only(h, w),
        notes=tuple(notes),
    )
