"""TensorRT plans as an engine. It imports no torch and no onnx; CUDA comes through cuda-python (`engines.trt.gpu`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from engines import base
from engines.base import Description, Engine, EngineError, LayerTime, NotInstalled, OutOfMemory, Timer, release
from engines.trt import gpu as cuda
from engines.trt import rtx
from engines.trt.gpu import GPU, CUDAError
from engines.trt.manifest import PLAN, RTX_PLAN, Manifest, read_manifest
from engines.trt.plan import Context, Plan, Shape
from engines.trt.versions import RTX, TensorRT
from ribsr.base.errors import printable
from ribsr.base.files import sha256
from ribsr.base.installation import build_kernels, pip_install
from ribsr.base.sizes import Limits, Size


class TensorRTEngine(Engine):
    """A plan of this toolkit and its manifest, run on the current GPU.

    Every thread that runs at the same time gets an execution context, a stream and buffers of its own, which are kept
    for the next call. cuda_graphs: record the work of a picture's size when it comes for the second time in a context,
    and launch it as a whole from then on: less work for the CPU, for many pictures of one size.
    """

    def __init__(self, path: str | Path, *, device: str = "auto", cuda_graphs: bool = False):
        self._cuda_graphs = cuda_graphs
        self._open(path, device)

    def _open(self, path: str | Path, device: str) -> None:
        base.check_choice("device", device, base.DEVICES)
        if device == "cpu":
            raise EngineError(f"{path}: a TensorRT plan runs on a GPU only; for the CPU run the .onnx it was made of")
        self._path = str(path)
        self._manifest = read_manifest(path)
        trt = _load(self._path, self._manifest)
        self._gpu = cuda.current_gpu()
        _check_fits(self._path, self._manifest, trt, self._gpu)
        if self._manifest.plugin is not None:
            _load_plugins(Path(path), self._manifest, trt)
        self._free_before = cuda.free_memory()
        plan = self._read(trt)
        smallest, _, largest = plan.shapes
        self._description = Description(
            **{**vars(self._manifest.stamp), "precision": self._manifest.precision, "form": self._manifest.form},
            path=self._path,
            runtime="tensorrt-rtx" if trt.rtx else "tensorrt-lean" if trt.lean else "tensorrt",
            runtime_version=trt.version.removeprefix(RTX),
            device=f"cuda:{self._gpu.index} {self._gpu.name}",
            batch=smallest[0] if smallest[0] == largest[0] else None,
            limits=Limits(Size(*smallest[2:]), Size(*largest[2:])),
            cuda_graphs=self._cuda_graphs,
        )
        self._plan: Plan | None = plan
        self._lock = threading.Lock()
        self._idle: list[_Lane] = []

    def _read(self, trt: TensorRT) -> Plan:
        return Plan(trt, Path(self._path).read_bytes(), self._path)

    def run(self, x: np.ndarray) -> np.ndarray:
        self._check(x)
        with self._lane(x) as lane:
            return lane.run(x, self._cuda_graphs).copy()

    def run_into(self, x: np.ndarray, out: np.ndarray, part: tuple[slice, slice] = base.WHOLE) -> None:
        self._check(x)
        base.check_out(out, x, self._description, part)
        with self._lane(x) as lane:
            out[...] = lane.run(x, self._cuda_graphs)[(..., *part)]

    def needs(self, size: Size, batch: int = 1) -> int | None:
        """As `Engine.needs`: what TensorRT says of activations, the same for all sizes, and buffers that grow."""
        with self._lock:
            plan, lane = self._plan, self._idle[-1] if self._idle else None
        if plan is None:
            return None
        pixels, scale = 12 * batch * size.height * size.width, self._description.scale
        buffers = {"input": pixels, "output": pixels * scale**2}
        if lane is None:
            return plan.device_memory + sum(buffers.values())
        return sum(max(0, size - lane.held(name)) for name, size in buffers.items())

    def device_memory(self) -> int | None:
        return cuda.free_memory()

    def release(self) -> None:
        """Drops the contexts and buffers that no thread uses."""
        with self._lock:
            lanes, self._idle = self._idle, []
        for lane in lanes:
            lane.close()

    def timer(self, x: np.ndarray) -> Timer:
        """Times the network alone, between CUDA events. The memory is all that this engine took of the GPU from its
        opening to its first run, by the driver's account: weights, activations, inputs and outputs, and code loaded
        for it. It is taken here, since what other processes take later would be counted, too."""
        self._check(x)
        with self._lane(x) as lane:
            lane.run(x, graphs=False)
        taken = self._free_before - cuda.free_memory()

        def once() -> float:
            with self._lane(x) as lane:
                return lane.time(x.shape, self._cuda_graphs)

        return Timer("CUDA events, pictures on the GPU", once, lambda: taken)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        self._check(x)
        with self._lane(x) as lane:
            lane.run(x, graphs=False)
            with lane.context.profiling() as layers:
                for _ in range(runs):
                    lane.run(x, graphs=False)
        with self._lock:
            told = [] if self._plan is None else self._plan.layers()
        # A plugin's layer has the name of its node, which does not say what it does.
        operators = {str(layer.get("Name")): str(layer.get("PluginType") or layer.get("LayerType")) for layer in told}
        return [
            LayerTime(name, milliseconds / runs, printable(operators.get(name, "")))
            for name, milliseconds in layers.items()
        ]

    def _no_layers(self) -> EngineError:
        return EngineError(
            f"{self._path}: a plan shows its output alone (TensorRT 10 and later show tensors that were marked for it "
            "when the plan was built; export.trt marks none); compare the .onnx file that it was made of"
        )

    def _check(self, x: np.ndarray) -> None:
        base.check_input(x, self._description, f"or build one for that size: {self._manifest.rebuild(self._path)}")

    @contextmanager
    def _lane(self, x: np.ndarray) -> Iterator[_Lane]:
        """A context that nobody else uses, for a call on x; a lack of memory becomes an error about x."""
        with self._lock:  # another thread may close the engine at any time
            plan, lane = self._plan, self._idle.pop() if self._idle else None
        if plan is None:
            raise base.closed(self._path)
        try:
            cuda.call("cudaSetDevice", self._gpu.index)  # threads start on device 0
            lane = lane or _Lane(plan)
            try:
                yield lane
            except BaseException:
                with suppress(CUDAError):  # after some errors CUDA frees nothing either; the first one is to be told
                    lane.close()
                raise
            with self._lock:
                if self._plan is not None:
                    self._idle.append(lane)
                    return
            lane.close()
        except CUDAError as error:
            if error.out_of_memory:
                raise base.out_of_memory(self._path, x) from None
            raise EngineError(f"{self._path}: {error}") from error
        except OutOfMemory:
            raise base.out_of_memory(self._path, x) from None

    def close(self) -> None:
        with self._lock:
            lanes, self._idle = self._idle, []
            self._plan = None
        for lane in lanes:
            lane.close()


class _Lane:
    """What one thread needs to run: an execution context, a stream, buffers that grow, and recorded graphs."""

    def __init__(self, plan: Plan):
        self._stream = cuda.Stream()
        try:
            self.context = Context(plan, self._stream.handle)
        except Exception:
            self._stream.close()
            raise
        self._buffers: dict[str, cuda.Buffer] = {}
        self._shape: Shape | None = None
        self._graph: cuda.Graph | None = None

    def run(self, x: np.ndarray, graphs: bool) -> np.ndarray:
        """x [B, 3, H, W] → [B, 3, sH, sW], in memory that the next call overwrites."""
        recorded = self._bind(x.shape) and graphs
        self._buffers["input"].array(x.shape)[...] = x
        self._stream.upload(self._buffers["input"], x.nbytes)
        self._launch(recorded)
        result = self._buffers["output"].array(self.context.output_shape)
        self._stream.download(self._buffers["output"], result.nbytes)
        self._stream.wait()
        return result

    def time(self, shape: Shape, graphs: bool) -> float:
        """Milliseconds of the network alone on what the buffers hold."""
        recorded = self._bind(shape) and graphs
        if recorded and self._graph is None:
            self._launch(True)  # recording is no part of what is timed
        return self._stream.time(lambda: self._launch(recorded))

    def _bind(self, shape: Shape) -> bool:
        """Prepares for inputs of `shape`; returns whether the last one had it, too."""
        if shape == self._shape:
            return True
        self._forget_graph()
        self._shape = None
        self.context.bind(shape, self._address)
        self._shape = shape
        return False

    def _address(self, name: str, shape: Shape) -> int:
        """Of a buffer that is large enough for float32 of `shape`, on the GPU."""
        size = int(np.prod(shape)) * 4
        if name not in self._buffers or self._buffers[name].size < size:
            if held := self._buffers.pop(name, None):
                held.close()
            self._buffers[name] = cuda.Buffer(size)
        return self._buffers[name].device

    def held(self, name: str) -> int:
        """Bytes of a buffer."""
        return self._buffers[name].size if name in self._buffers else 0

    def _launch(self, recorded: bool) -> None:
        if not recorded:
            self.context.enqueue()
            return
        self._graph = self._graph or cuda.Graph(self._stream, self.context.enqueue)
        self._graph.launch()

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None

    def close(self) -> None:
        self._stream.wait()
        self._forget_graph()
        del self.context
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers.clear()
        self._stream.close()


def _check_fits(path: str, manifest: Manifest, trt: TensorRT, gpu: GPU) -> None:
    """Raises EngineError if the plan is for another TensorRT or another kind of GPU, which TensorRT says unreadably."""
    if trt.lean and not manifest.version_compatible:
        raise EngineError(
            f"{path}: was built without --version-compatible, and TensorRT's lean runtime takes no such plan; build it "
            f"again where it was built, with this option, or install all of TensorRT {manifest.tensorrt}: "
            f"{pip_install('trt')}"
        )
    differences = []
    if not trt.runs(manifest.tensorrt, manifest.version_compatible):
        differences.append(f"TensorRT {manifest.tensorrt}, here is {trt.version}")
    if not rtx.serves(manifest.compute_capability, gpu.compute_capability):
        differences.append(f"compute capability {manifest.compute_capability}, here is {gpu.compute_capability}")
    if differences:
        what = " and for ".join(differences)
        advice = f"build it here: {manifest.rebuild(path, gpu.compute_capability)}"
        if manifest.version_compatible:
            oldest = manifest.tensorrt
            advice = f"it runs in TensorRT {release(oldest)[0]} from {oldest} on, on such a GPU; or build another: "
            advice += manifest.rebuild(path)
        if trt.rtx and gpu.compute_capability not in rtx.supported(trt):
            advice = (
                f"TensorRT {trt.version} is for {', '.join(rtx.supported(trt))}; build a plan for TensorRT itself "
                "here: python -m export.trt"
            )
        raise EngineError(f"{path}: was built for {what}; {advice}")


def _load(path: str, manifest: Manifest) -> TensorRT:
    """The TensorRT that built the plan, of whatever version; its lean runtime where that is all there is of it.

    Raises EngineError where only the other one is here, and for a plan that has the suffix of the other one's.
    """
    suffix = RTX_PLAN if manifest.rtx else PLAN
    try:
        trt = TensorRT.load(True) if manifest.rtx else _full_or_lean()
    except NotInstalled as error:
        try:
            other = TensorRT.load(not manifest.rtx)
        except NotInstalled:
            raise error from None
        raise EngineError(
            f"{path}: was built by TensorRT {manifest.tensorrt}, and here is TensorRT {other.version} alone: "
            f"{pip_install('rtx' if manifest.rtx else 'trt')}, or build it for that one: "
            f"python -m export.trt --onnx {manifest.onnx}"
        ) from None
    if Path(path).suffix != suffix:
        right = Path(path).with_suffix(suffix).name
        raise EngineError(
            f"{path}: is a plan of TensorRT {manifest.tensorrt}: call it {right}, and its manifest {right}.json"
        )
    return trt


def _full_or_lean() -> TensorRT:
    """Raises NotInstalled that is about all of TensorRT where both are missing."""
    try:
        return TensorRT.load(False)
    except NotInstalled:
        with suppress(NotInstalled):
            return TensorRT.load_lean()
        raise


def _load_plugins(plan: Path, manifest: Manifest, trt: TensorRT) -> None:
    """Registers the plugin library that the plan was built with: the one beside the plan, else the built one.

    Raises EngineError if it is missing, another build, or does not load.
    """
    from plugins import library

    assert manifest.plugin is not None
    beside = plan.with_name(manifest.plugin["file"])
    path = beside if beside.is_file() else library.tensorrt_path(trt.major)
    if not path.is_file():
        raise EngineError(
            f"{plan}: needs the plugin library {manifest.plugin['file']}, which is neither beside it nor at {path}; "
            f"copy it there, or run {build_kernels('--tensorrt-include DIR')} and build the plan again"
        )
    found = sha256(path)
    if found != manifest.plugin["sha256"]:
        raise EngineError(
            f"{plan}: was built with another build of {path} (SHA-256 {manifest.plugin['sha256'][:12]}…, this is "
            f"{found[:12]}…); put that one beside the plan, or build the plan again: {manifest.rebuild(plan)}"
        )
    try:
        library.load_tensorrt(trt.module, path)
    except library.LibraryError as error:
        raise EngineError(f"{plan}: {error}") from error
