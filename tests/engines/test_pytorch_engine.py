"""The PyTorch engine."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.engines import fakes

torch = pytest.importorskip("torch")

import ribsr  # noqa: E402
from engines import EngineError, OutOfMemory, open_engine  # noqa: E402
from engines.base import LayerTime  # noqa: E402
from engines.pytorch import cuda_timer, operator_times  # noqa: E402
from ribsr.base.files import sha256  # noqa: E402

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_it_computes_what_the_model_computes(checkpoint: Path) -> None:
    x = fakes.picture(11, 9)
    with torch.inference_mode():
        expected = ribsr.load(checkpoint)(torch.from_numpy(x)).numpy()
    with open_engine(checkpoint, device="cpu") as engine:
        np.testing.assert_array_equal(engine.run(x), expected)


def test_it_agrees_with_the_onnx_file(checkpoint: Path, onnx_file: Path) -> None:
    x = fakes.picture(13, 17)
    with open_engine(checkpoint) as one, open_engine(onnx_file) as other:
        np.testing.assert_allclose(one.run(x), other.run(x), atol=1e-5)


@no_gpu
def test_the_description_says_what_runs_where(checkpoint: Path) -> None:
    with open_engine(checkpoint, precision="bf16", attention="reference") as engine:
        described = engine.describe()
    assert (described.runtime, described.device, described.precision) == ("pytorch", "cpu", "bf16")
    assert (described.model, described.scale, described.windows) == ("tiny", 2, ((4, 4), (8, 8)))
    assert described.form == "reference"
    assert described.checkpoint_sha256 == sha256(checkpoint)
    with open_engine(checkpoint) as engine:
        assert engine.describe().form == "sdpa", "auto names the backend that it chose"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 5e-2)])
def test_half_precision_is_close_but_not_equal(checkpoint: Path, precision: str, tolerance: float) -> None:
    x = fakes.picture(16, 16)
    with open_engine(checkpoint) as full, open_engine(checkpoint, precision=precision) as half:
        y = half.run(x)
        assert y.dtype == np.float32
        assert 0 < np.abs(y - full.run(x)).max() < tolerance


def test_half_precision_on_a_cpu_is_what_pytorch_computes(checkpoint: Path) -> None:
    """Its convolutions take a faster way there."""
    x = fakes.picture(16, 16)
    model = ribsr.load(checkpoint).half()
    with torch.inference_mode():
        own = model(torch.from_numpy(x).half()).float().numpy()
    with open_engine(checkpoint, precision="fp16", device="cpu") as engine:
        np.testing.assert_allclose(engine.run(x), own, atol=4e-3)  # two roundings of values up to 2


def test_the_rib_stays_in_float32_in_half_copies(checkpoint: Path) -> None:
    with open_engine(checkpoint, precision="bf16") as engine:
        parameters = dict(engine._model.named_parameters())  # pyright: ignore[reportAttributeAccessIssue]
    kept = {name.rsplit(".", 1)[-1] for name, value in parameters.items() if value.dtype == torch.float32}
    assert kept == {"to_hidden", "hidden_b", "to_q", "to_k"}


def test_threads_share_an_engine(checkpoint: Path) -> None:
    pictures = [fakes.picture(3 + i % 3, 9 - i, seed=i) for i in range(6)]
    with open_engine(checkpoint) as engine:
        serial = [engine.run(x) for x in pictures]
        with ThreadPoolExecutor(4) as pool:
            parallel = list(pool.map(engine.run, pictures))
    for one, other in zip(serial, parallel, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_closed_engine_says_so(checkpoint: Path) -> None:
    with open_engine(checkpoint) as engine:
        pass
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.run(fakes.picture())


def test_bad_checkpoints_and_options(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "noise.pt").write_bytes(b"no checkpoint")
    with pytest.raises(EngineError, match=r"noise\.pt: not a PyTorch checkpoint"):
        open_engine(tmp_path / "noise.pt")
    torch.save({"params": ribsr.load(checkpoint).state_dict()}, tmp_path / "bare.pth")
    with pytest.raises(EngineError, match="no model is called 'sst-xs'"):
        open_engine(tmp_path / "bare.pth", model="sst-xs")
    with pytest.raises(EngineError, match=r"precision 'int8' is unknown; choose one of fp32, fp16, bf16"):
        open_engine(checkpoint, precision="int8")
    with pytest.raises(EngineError, match="no attention backend is called 'xformers'; choose one of auto, reference"):
        open_engine(checkpoint, attention="xformers")


@no_gpu
def test_cuda_without_a_gpu_is_an_error(checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"device cuda was asked for, but PyTorch .*; use --device cpu"):
        open_engine(checkpoint, device="cuda")


def test_times_are_means_of_every_run_but_the_first() -> None:
    x, spent = torch.rand(600, 600), []

    def run() -> None:
        start = time.perf_counter()
        torch.sort(x) if spent else torch.inverse(x)
        torch.exp(x)
        spent.append((time.perf_counter() - start) * 1e3)

    layers = operator_times(run, torch.device("cpu"), runs=4)
    names = [layer.name for layer in layers]
    assert len(spent) == 5
    assert not any("inv" in name for name in names), "what only the first run does"
    assert names.index("aten::sort") < names.index("aten::exp"), "the order of a run"
    total, mean = sum(layer.milliseconds for layer in layers), sum(spent[1:]) / 4
    assert mean / 2 < total <= mean, "operators without those that they call"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_times_on_a_gpu_are_those_of_its_kernels() -> None:
    x = torch.rand(8000, 8000, device="cuda")
    (layer,) = operator_times(lambda: x.exp(), x.device, runs=3)
    assert "exp" in layer.name
    assert layer.milliseconds == pytest.approx(cuda_timer(lambda: x.exp(), x.device).once(), rel=0.5)


NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12 (…)"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (f"[enforce fail at alloc_cpu.cpp:127] err == 0. {NO_MEMORY}", None),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", None),
        ("shapes differ\nC++ trace", r"PyTorch failed on \[1, 3, 9, 11\] \(shapes differ\)"),
        (f"the layer '{NO_MEMORY}' is wrong", "is wrong"),
        ("CUDA error: an illegal memory access was encountered\nout of memory", "an illegal memory access"),
    ],
)
def test_what_fails_inside_pytorch_is_one_line(checkpoint: Path, message: str, expected: str | None) -> None:
    """It is a lack of memory (None) where an allocator says so, not where another error has its words."""

    def failing(_: object) -> None:
        raise RuntimeError(message)

    with open_engine(checkpoint) as engine:
        engine._model = failing  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(EngineError, match=expected or "out of memory on a picture of 11x9") as info:
            engine.run(fakes.picture())
        assert "\n" not in str(info.value)
        assert isinstance(info.value, OutOfMemory) == (expected is None)


def test_the_allocator_says_what_is_waited_for(checkpoint: Path) -> None:
    """In the words of the PyTorch that is installed."""
    with open_engine(checkpoint) as engine:
        engine._model = lambda _: torch.empty(1 << 50)  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(OutOfMemory):
            engine.run(fakes.picture())


@pytest.mark.parametrize(
    ("name", "dtype", "suits"),
    [
        ("sst-light", "float16", True),
        ("sst-l+", "bfloat16", True),
        ("sst", "float16", False),  # heads of 30 and ranks of 34: only correct there
        ("sst-light", "float32", False),
    ],
)
def test_which_models_the_fused_kernel_is_for(
    name: str, dtype: str, suits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.pytorch import _suits_kernel

    with torch.device("meta"):
        model = ribsr.build(ribsr.config(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert _suits_kernel(model, torch.device("cuda", 0), getattr(torch, dtype)) is suits
    assert not _suits_kernel(model, torch.device("cpu"), getattr(torch, dtype))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not _suits_kernel(model, torch.device("cuda", 0), getattr(torch, dtype))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_fused_kernel_is_chosen_by_itself_or_its_absence_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plugins import library

    ribsr.save(ribsr.build(ribsr.config("sst-light")), tmp_path / "light.pt")
    x = fakes.picture(40, 56)
    with open_engine(tmp_path / "light.pt", precision="fp16", attention="sdpa") as other:
        expected = other.run(x)
    if library.path().exists():
        with open_engine(tmp_path / "light.pt", precision="fp16") as engine:
            assert engine.describe().form == "kernel"
            np.testing.assert_allclose(engine.run(x), expected, atol=4e-3)
    monkeypatch.setenv(library.VARIABLE, str(tmp_path / "none.so"))
    with open_engine(tmp_path / "light.pt", precision="fp16") as engine:
        assert engine.describe().form == "sdpa"
        assert any("python -m plugins.build" in note for note in engine.describe().notes)


def test_the_profile_names_operators_by_what_they_take_themselves(checkpoint: Path) -> None:
    x = fakes.picture(48, 40)
    with open_engine(checkpoint, device="cpu") as engine:
        layers = engine.profile(x, runs=2)
        timer = engine.timer(x)
        whole = min(timer.once() for _ in range(3))
    names = [layer.name for layer in layers]
    assert len(set(names)) == len(names)
    assert any("convolution" in name or "conv2d" in name for name in names)
    assert names.index("aten::pixel_shuffle") > names.index("aten::native_layer_norm"), "in the order of a run"
    assert all(layer.milliseconds > 0 for layer in layers)
    assert whole / 20 < sum(layer.milliseconds for layer in layers) < 1000 * whole, "milliseconds a run"
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.profile(x)
    with open_engine(checkpoint) as engine, pytest.raises(EngineError, match="must be float32"):
        engine.profile(x.astype(np.float64))


def test_on_a_gpu_kernels_have_names_and_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators and calls of CUDA that start them stand in the trace, too: they are not counted."""

    def event(device_type: str, name: str, start: int, spent: float) -> SimpleNamespace:
        seen = SimpleNamespace(start=start, elapsed_us=lambda: spent)
        return SimpleNamespace(device_type=SimpleNamespace(name=device_type), name=name, time_range=seen)

    events = [
        event("CUDA", "gemm_kernel", 5, 8000),
        event("CPU", "aten::mm", 2, 10),
        event("CPU", "cudaLaunchKernel", 3, 10),
        event("CUDA", "gemm_kernel", 9, 2000),
        event("CUDA", "conv_kernel", 4, 3000),
    ]
    trace = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr("torch.profiler.profile", lambda **options: nullcontext(trace))
    ran: list[int] = []
    assert operator_times(lambda: ran.append(1), torch.device("cuda", 0), 2) == [
        LayerTime("conv_kernel", 1.5),
        LayerTime("gemm_kernel", 5.0),
    ]
    assert len(ran) == 3
