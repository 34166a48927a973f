"""OpenVINO as an engine, on the CPU."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from engines import base, memory
from engines.base import WHOLE, Description, Engine, EngineError, LayerTime, NotInstalled
from engines.cache import open_cache
from engines.metadata import Stamp, has_external_data, read_shapes, read_stamp
from engines.running import Runner
from ribsr.base import signal_stack
from ribsr.base.errors import first_line, printable
from ribsr.base.files import sha256
from ribsr.base.installation import pip_install
from ribsr.base.sizes import Limits, Size

if TYPE_CHECKING:
    import openvino

T = TypeVar("T")

RECIPE = 1
"""The way from a file to a compiled model. Change it where that changes: what is kept on disk is made again."""


class OpenVINOEngine(Engine):
    """An .onnx file of this toolkit run by OpenVINO; `engines.open_engine` says what the arguments mean.

    hint: `latency`, the default, runs one picture at a time in all threads; `throughput` as many at once as threads
    call, each in fewer. cache: a folder for compiled models, by default one in the user's folder for caches.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str | None = None,
        hint: str | None = None,
        cache: str | Path | None = None,
    ):
        self._path = str(path)
        if base.check_choice("device", device, base.DEVICES) == "cuda":
            raise EngineError(f"{path}: OpenVINO runs on the CPU; leave out --device cuda, or --runtime openvino")
        hint = base.check_choice("hint", hint or "latency", base.HINTS)
        stamp = read_stamp(path)
        _check_file(self._path, stamp)
        stamp = replace(stamp, precision=base.precision_of(stamp, self._path, precision))
        ov = import_runtime()
        core = new_core(ov)
        if stamp.precision == "bf16" and precision == "bf16" and "BF16" not in capabilities(core):
            raise EngineError(f"{path}: this CPU has no bfloat16 instructions; leave out --precision bf16")
        self._file = _File(self._path, stamp, _configuration(precision, threads, hint), sha256(path), cache)
        compiled, notes = _opened(ov, core, self._file)
        self._loaded: _Loaded | None = _Loaded(compiled, one_by_one=hint == "latency")
        self._loading = Lock()
        self._description = _describe(ov, self._file, compiled, notes)
        self._runner = Runner(in_background=True)
        shapes = read_shapes(path)
        self._network = memory.Network.of(shapes, stamp.windows)
        self._bfloat16 = precision == "bf16"
        self._weights = (2 if self._bfloat16 else 4) * sum(map(math.prod, shapes))
        self._held = 0

    def run(self, x: np.ndarray) -> np.ndarray:
        return self._run(x, np.copy)

    def run_into(self, x: np.ndarray, out: np.ndarray, part: tuple[slice, slice] = WHOLE) -> None:
        base.check_input(x, self._description)
        base.check_out(out, x, self._description, part)
        self._run(x, lambda y: np.copyto(out, y[(..., *part)]))

    def _run(self, x: np.ndarray, use: Callable[[np.ndarray], T]) -> T:
        """use(the result, in memory of OpenVINO's that the next run overwrites)."""
        base.check_input(x, self._description)
        while True:
            loaded, request = self._guarded(x, self._borrowed)
            y = self._guarded(x, partial(self._infer, loaded, request, x))
            if not loaded.broken:  # or else what it did since then may be wrong
                break
        used = use(y)
        self._held = max(self._held, self._total(Size.of(x), len(x)))
        loaded.idle.append(request)
        return used

    def _infer(self, loaded: _Loaded, request: openvino.InferRequest, x: np.ndarray) -> np.ndarray:
        inputs = {0: np.ascontiguousarray(x)}

        def work() -> None:  # request.infer() cannot be cancelled
            with loaded.turn:
                try:
                    request.start_async(inputs)
                    request.wait()
                except BaseException:
                    loaded.broken = True
                    raise

        try:
            self._runner.run(_Cancelled(request), work)
        except BaseException:  # of Ctrl-C the thread that works knows later
            loaded.broken = True
            raise
        return request.get_output_tensor(0).data

    def _borrowed(self) -> tuple[_Loaded, openvino.InferRequest]:
        """The model, loaded again where it is broken, and a request of it. Raises EngineError."""
        with self._loading:
            if self._loaded is None:
                raise base.closed(self._path)
            if self._loaded.broken:
                self._loaded = self._loaded_again(self._loaded)
            return self._loaded, self._loaded.request()

    def _loaded_again(self, broken: _Loaded) -> _Loaded:
        try:
            changed = sha256(self._path) != self._file.sha256
        except OSError as error:
            raise EngineError(f"{self._path}: cannot be read again ({error.strerror})") from None
        if changed:
            raise EngineError(f"{self._path}: has changed since it was opened; open it again")
        ov, self._held = import_runtime(), 0
        broken.idle.clear()
        broken.compiled = None  # its memory may be needed
        return _Loaded(_opened(ov, new_core(ov), self._file)[0], broken.one_by_one)

    def _guarded(self, x: np.ndarray, use: Callable[[], T]) -> T:
        """use(), with the runtime's own exceptions as EngineErrors."""
        try:
            return use()
        except MemoryError:
            raise base.out_of_memory(self._path, x) from None
        except RuntimeError as error:
            if isinstance(error, EngineError):
                raise
            if _is_out_of_memory(error):
                raise base.out_of_memory(self._path, x) from None
            raise EngineError(f"{self._path}: OpenVINO failed on {list(x.shape)} ({reason(error)})") from error

    def needs(self, size: Size, batch: int = 1) -> int | None:
        return max(0, self._total(size, batch) - self._held)

    def _total(self, size: Size, batch: int) -> int:
        """Bytes of a first run."""
        each = memory.openvino_on_cpu(self._network, self._description.form, self._bfloat16, size)
        return batch * each + self._weights

    def release(self) -> None:
        self._held = min(self._held, self._weights)
        if (loaded := self._loaded) is not None:
            loaded.idle.clear()
            with suppress(RuntimeError):  # a thread runs it
                if loaded.compiled is not None:
                    loaded.compiled.release_memory()
        memory.trim_heap()

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        base.check_input(x, self._description)
        if self._loaded is None:
            raise base.closed(self._path)
        ov = import_runtime()
        loaded = _Loaded(_compiled(ov, new_core(ov), self._file, counting=True), one_by_one=True)
        request = loaded.request()
        times: dict[tuple[str, str], float] = {}
        for number in range(1 + runs):
            self._guarded(x, partial(self._infer, loaded, request, x))
            for layer in request.profiling_info if number else ():
                if layer.status == ov.ProfilingInfo.Status.EXECUTED:
                    node = (printable(layer.node_name), printable(layer.node_type))
                    times[node] = times.get(node, 0.0) + layer.real_time.total_seconds() * 1e3 / runs
        return [LayerTime(name, milliseconds, operator) for (name, operator), milliseconds in times.items()]

    def close(self) -> None:
        self._loaded = None
        self._runner.close()


class _Loaded:
    """A compiled model, and its requests that do not run.

    After a run that failed or was cancelled OpenVINO takes sizes of that run for those of the next: it is broken then.
    one_by_one: it has one queue; who runs takes `turn`, so that nobody runs what another one breaks.
    """

    def __init__(self, compiled: openvino.CompiledModel, one_by_one: bool):
        self.compiled: openvino.CompiledModel | None = compiled
        self.one_by_one, self.broken = one_by_one, False
        self.idle: list[openvino.InferRequest] = []
        self.turn = Lock() if one_by_one else nullcontext()

    def request(self) -> openvino.InferRequest:
        try:
            return self.idle.pop()
        except IndexError:  # all are running
            if self.compiled is None:
                raise RuntimeError("a broken model has no more requests") from None
            return self.compiled.create_infer_request()


class _Cancelled:
    """A request as `Runner` ends runs: `terminate` set."""

    def __init__(self, request: openvino.InferRequest):
        self._request = request

    @property
    def terminate(self) -> bool:
        return False

    @terminate.setter
    def terminate(self, value: bool) -> None:
        if value:
            self._request.cancel()


def reason(error: BaseException) -> str:
    """What OpenVINO says: the first line of its summary, or the last of a message without; others name its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    summary = lines[lines.index("Summary:") + 1 :][:1] if "Summary:" in lines else lines[-1:]
    return first_line(RuntimeError(*summary))


_NO_MEMORY = re.compile(r"(Caught exception: )?std::bad_alloc|Failed to allocate \d+ bytes of memory")
"""The last line of what OpenVINO says of memory: C++'s word, and its own."""


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a run failed for want of memory: no type or code says so."""
    return _NO_MEMORY.fullmatch(str(error).strip().rpartition("\n")[2]) is not None


def import_runtime() -> Any:
    """OpenVINO's module. Raises EngineError where it is missing or too old."""
    brings = pip_install("openvino")
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise NotInstalled(f"the runtime openvino needs OpenVINO, which is not installed: {brings}") from None
    if base.release(openvino.__version__) < base.OLDEST_OPENVINO:
        oldest = ".".join(map(str, base.OLDEST_OPENVINO))
        raise EngineError(f"OpenVINO {version(openvino)} knows too little for these files, {oldest} does: {brings}")
    return openvino


def new_core(ov: Any) -> openvino.Core:
    """OpenVINO with its part for CPUs loaded, which would set a signal stack of its own in the calling thread."""
    with signal_stack.kept():
        core = ov.Core()
        core.get_property("CPU", "FULL_DEVICE_NAME")
        return core


def version(ov: Any) -> str:
    """2026.4.1 of 2026.4.1-22982-e213a147257-releases/2026/4."""
    return str(ov.__version__).partition("-")[0]


def capabilities(core: openvino.Core) -> tuple[str, ...]:
    """What OpenVINO computes in on this CPU: `FP32`, `BF16`, …"""
    return tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


@dataclass(frozen=True)
class _File:
    """A file and what is to be made of it. configuration: what OpenVINO compiles it with. cache: as the caller says."""

    path: str
    stamp: Stamp
    configuration: dict[str, Any]
    sha256: str
    cache: str | Path | None


def _configuration(precision: str | None, threads: int | None, hint: str) -> dict[str, Any]:
    """Where no precision is named, OpenVINO computes in bfloat16 on CPUs that have it, whatever the file says."""
    told = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": hint.upper(),
    }
    return told if threads is None else {**told, "INFERENCE_NUM_THREADS": threads}


def _check_file(path: str, stamp: Stamp) -> None:
    """Raises EngineError for what OpenVINO does not run."""
    if stamp.form == "plugin":
        raise EngineError(f"{path}: is in plugin form, which OpenVINO does not run; export it again without --form")
    if has_external_data(path):
        raise EngineError(f"{path}: keeps its weights in another file; export it again, which makes one file")


def _opened(ov: Any, core: openvino.Core, file: _File) -> tuple[openvino.CompiledModel, tuple[str, ...]]:
    """The compiled model, from the cache if it is there, and notes."""
    cache, notes = open_cache(file.path, file.cache, "openvino")
    parts = {
        "recipe": RECIPE,
        "file": file.sha256,
        "configuration": file.configuration,
        "openvino": ov.__version__,
        "cpu": [core.get_property("CPU", "FULL_DEVICE_NAME"), *capabilities(core)],
    }
    kept = None if cache is None else cache.read(parts)
    if kept is not None:
        try:
            return core.import_model(io.BytesIO(kept), "CPU", file.configuration), notes
        except RuntimeError:  # whatever OpenVINO does not like of it, it is made again
            pass
    compiled = _compiled(ov, core, file)
    if cache is not None:
        try:
            cache.write(parts, compiled.export_model().getvalue())
        except OSError as error:
            notes = (*notes, f"{file.path}: the compiled model was not kept: {first_line(error)}")
    return compiled, notes


def _compiled(ov: Any, core: openvino.Core, file: _File, counting: bool = False) -> openvino.CompiledModel:
    """counting: whether layers are timed."""
    configuration = {**file.configuration, "PERF_COUNT": counting}
    try:
        source = file.path if file.stamp.form != "canonical" else io.BytesIO(_flat(file.path))
        model = core.read_model(source)
        _spell_out_abs(model)
        return core.compile_model(model, "CPU", configuration)
    except RuntimeError as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(
            f"{file.path}: OpenVINO {version(ov)} cannot load it ({reason(error)}); if the file is damaged, "
            "export it again"
        ) from error


def _flat(path: str) -> bytes:
    """A canonical file with its function's body in place of every call, which is how OpenVINO reads it.

    Measured with sst-light: no other form is faster there.
    """
    try:
        import onnx
        import onnx.inliner
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{path}: OpenVINO reads no ONNX functions, and {error.name}, which expands them, is not installed: "
            f"{pip_install('openvino')}; or export the file with --form mha"
        ) from None
    from google.protobuf.message import DecodeError

    try:
        return onnx.inliner.inline_local_functions(onnx.load(path)).SerializeToString()
    except DecodeError:
        raise EngineError(f"{path}: is damaged; export or copy it again") from None


def _spell_out_abs(model: openvino.Model) -> None:
    """|x| of whole numbers as max(x, -x).

    OpenVINO 2025.4 to 2026.4 drops Abs where it computes an expression of constants beforehand. In files of before that
    makes the mirrored pixels wrong, where a size is fixed: an error of 0.02 on pictures.
    """
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() == "Abs" and node.get_output_element_type(0).is_integral():
            x = node.input_value(0)
            node.output(0).replace(ops.maximum(x, ops.negative(x)).output(0))


def _describe(ov: Any, file: _File, compiled: openvino.CompiledModel, notes: tuple[str, ...]) -> Description:
    """Raises EngineError where OpenVINO does not compute as it was told."""
    (x,), (y,) = compiled.inputs, compiled.outputs
    if ("input" not in x.names or "output" not in y.names) or len(x.partial_shape) != 4:
        raise EngineError(
            f"{file.path}: its stamp is this toolkit's but its inputs and outputs are not; export it again"
        )
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != file.configuration["INFERENCE_PRECISION_HINT"]:
        raise EngineError(f"{file.path}: OpenVINO computes in {found} here, which nobody asked for")
    b, _, h, w = (None if side.is_dynamic else side.get_length() for side in x.partial_shape)
    return Description(
        **vars(file.stamp),
        path=file.path,
        runtime="openvino",
        runtime_version=version(ov),
        device="cpu",
        batch=b,
        limits=Limits.only(h, w),
        notes=notes,
    )
