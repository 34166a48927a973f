"""One run of a model in another program's runtime: a program for any Python that has NumPy and that runtime.

    python _runtime_child.py KIND MODEL INPUT.npy OUTPUT.npy fixed|dynamic [SETTING=VALUE ...]

Prints the seconds of each run but the first, as JSON. `tools/runtimes.py` starts it, in environments that have nothing
of this toolkit; so it imports nothing of it either.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import numpy as np

RUNS = 2
"""Runs that are timed, after one that is not."""

Run = Callable[[np.ndarray], np.ndarray]
"""[1, 3, H, W] float32 → [1, 3, sH, sW] float32."""


def onnx_runtime(model: str, x: np.ndarray, fixed: bool, settings: dict[str, str]) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    if fixed:
        names = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).get_inputs()[0].shape
        for name, size in zip(names, x.shape, strict=True):
            if isinstance(name, str):
                options.add_free_dimension_override_by_name(name, size)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def openvino(model: str, x: np.ndarray, fixed: bool, settings: dict[str, str]) -> Run:
    import openvino as ov

    core = ov.Core()
    read = core.read_model(model)
    if fixed:
        read.reshape(list(x.shape))
    compiled = core.compile_model(read, "CPU", settings)
    return lambda x: compiled([x])[0]


def tract(model: str, x: np.ndarray, fixed: bool, settings: dict[str, str]) -> Run:
    import tract as runtime

    read = runtime.onnx().load(model)
    if fixed:
        read.set_input_fact(0, ",".join(map(str, x.shape)) + ",f32")
    runnable = read.into_model().into_runnable()
    return lambda x: runnable.run([x])[0].to_numpy()


def onnx2torch(model: str, x: np.ndarray, fixed: bool, settings: dict[str, str]) -> Run:
    from onnx2torch import convert

    module = convert(model).eval()
    tensor = next(module.parameters()).new_tensor  # torch, by what it made
    return lambda x: module(tensor(x)).detach().numpy()


def vapoursynth(model: str, x: np.ndarray, fixed: bool, settings: dict[str, str]) -> Run:
    """A plugin of vs-mlrt, settings["plugin"], as a script uses it: frames of an RGBS clip, of sizes that it fixes."""
    import vapoursynth as vs

    core, others = vs.core, {name: value for name, value in settings.items() if name != "plugin"}
    given = [x]

    def filled(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for plane in range(3):
            np.copyto(np.asarray(frame[plane]), given[0][0, plane])
        return frame

    blank = core.std.BlankClip(width=x.shape[3], height=x.shape[2], format=vs.RGBS, length=RUNS + 1)
    options = {"config": lambda: others} if others else {}
    clip = getattr(core, settings["plugin"]).Model([core.std.ModifyFrame(blank, blank, filled)], model, **options)
    frames = iter(range(RUNS + 1))

    def run(x: np.ndarray) -> np.ndarray:
        given[0] = x
        frame = clip.get_frame(next(frames))
        return np.stack([np.asarray(frame[plane]) for plane in range(3)])[None]

    return run


KINDS = {
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": openvino,
    "tract": tract,
    "onnx2torch": onnx2torch,
    "vs-mlrt": vapoursynth,
}


def main(kind: str, model: str, source: str, target: str, sizes: str, *settings: str) -> None:
    x = np.load(source)
    run = KINDS[kind](model, x, sizes == "fixed", dict(setting.split("=", 1) for setting in settings))
    np.save(target, run(x))
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run(x)
        seconds.append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
