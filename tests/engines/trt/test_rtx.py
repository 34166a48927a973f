"""TensorRT RTX: the GPUs that its plans are for, and its plans as an engine, over a module that is played here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engines import EngineError, driver, open_engine
from engines.trt import gpu as cuda
from engines.trt import rtx
from engines.trt.builder import Builder
from engines.trt.manifest import write_manifest
from engines.trt.versions import TensorRT
from plugins import library
from ribsr.base.installation import pip_install
from tests.engines import fakes
from tests.engines.trt import test_engine, test_manifest
from tests.engines.trt.tensorrt_fake import RTX, Memory, fake_tensorrt, instance
from tests.engines.trt.test_engine import network, refusal

ALL = ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]
gpu = test_engine.gpu


@pytest.fixture
def surface() -> Any:
    """The recorded module."""
    return fake_tensorrt(RTX)


# Which GPUs


def test_the_cards_are_those_of_the_bindings(surface: Any) -> None:
    trt = TensorRT(surface, rtx=True)
    assert rtx.supported(trt) == ALL
    assert rtx.choose(trt, ()) == ()
    assert rtx.choose(trt, ("12.0", "8.9", "12.0")) == ("8.9", "12.0")  # the order changes the plan
    assert rtx.noted(trt, ()) == "8.0,8.6,8.9,12.0,12.1+"
    assert rtx.noted(trt, ("8.9", "12.0")) == "8.9,12.0"


@pytest.mark.parametrize(
    ("here", "asked", "message"),
    [
        (
            "9.0",
            "9.0",
            "--gpu 9.0: TensorRT RTX 1.7.1.116 does not build for compute capability 9.0; it builds for 7.5",
        ),
        ("9.0", "current", "does not build for the GPU here, which has compute capability 9.0"),
        ("", "current", "--gpu current: there is no driver; name compute capabilities: --gpu 8.0,8.6"),
    ],
)
def test_what_it_does_not_build_for_is_refused(surface: Any, monkeypatch, here: str, asked: str, message: str) -> None:
    def capability() -> str:
        if not here:
            raise driver.NoGPU("there is no driver")
        return here

    monkeypatch.setattr(driver, "capability", capability)
    with pytest.raises(EngineError) as error:
        rtx.choose(TensorRT(surface, rtx=True), ("8.9", asked))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_card_here_is_named_by_its_number(surface: Any, monkeypatch) -> None:
    monkeypatch.setattr(driver, "capability", lambda: "8.9")
    assert rtx.choose(TensorRT(surface, rtx=True), ("current",)) == ("8.9",)


@pytest.mark.parametrize(
    ("capabilities", "served", "others"),
    [
        ("8.9,12.0", ["8.9", "12.0"], ["8.6", "9.0", "12.1"]),
        ("8.0,8.6,8.9,12.0,12.1+", ["8.0", "8.9", "12.1", "13.0"], ["7.5", "9.0", "10.0", "11.0"]),
        ("9.0", ["9.0"], ["8.9", "9.1"]),
    ],
)
def test_a_plan_serves_the_cards_in_its_manifest(capabilities: str, served: list[str], others: list[str]) -> None:
    assert [one for one in [*served, *others] if rtx.serves(capabilities, one)] == served


def test_the_builder_is_told_of_the_cards(surface: Any) -> None:
    builder = Builder(TensorRT(surface, rtx=True))
    builder.target(("8.9", "12.0"))
    assert builder._config.num_compute_capabilities == 2
    member = surface.ComputeCapability
    told = [args for name, args in surface.calls if name == "IBuilderConfig.set_compute_capability"]
    assert told == [(member.SM89, 0), (member.SM120, 1)]
    surface.behaviour["IBuilderConfig.set_compute_capability"] = False
    with pytest.raises(EngineError, match="refuses to build for compute capability 8.9"):
        builder.target(("8.9",))


def test_a_network_is_told_in_the_words_of_the_inspector(surface: Any) -> None:
    half, kinds = surface.DataType.HALF, surface.LayerType
    tensor = instance(surface, "ITensor", dtype=half)
    layer = instance(surface, "ILayer", name="node_1", type=kinds.PLUGIN_V3, num_inputs=2)
    surface.behaviour |= {
        "INetworkDefinition.num_layers": 1,
        "INetworkDefinition.get_layer": lambda self, index: layer,
        "ILayer.get_input": lambda self, index: [tensor, None][index],
    }
    layers = Builder(TensorRT(surface, rtx=True)).layers()
    assert layers == [{"Name": "node_1", "LayerType": "PLUGIN_V3", "Inputs": [{"Datatype": "HALF"}]}]


# Which TensorRT


@pytest.fixture
def installed(monkeypatch) -> Any:
    """A function that makes these packages the only ones."""

    def install(**modules: Any) -> None:
        for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.setitem(sys.modules, name, modules.get(name))

    return install


def test_tensorrt_is_taken_unless_the_other_is_asked_for_or_alone(installed: Any) -> None:
    plain, other = SimpleNamespace(__version__="10.16.1"), SimpleNamespace(__version__="1.7.1.116")
    installed(tensorrt=plain, tensorrt_rtx_bindings=other)
    assert (TensorRT.load().version, TensorRT.load(rtx=True).version) == ("10.16.1", "RTX 1.7.1.116")
    installed(tensorrt_rtx_bindings=other)
    found = TensorRT.load()
    assert (found.version, found.major, found.release) == ("RTX 1.7.1.116", 11, (1, 7))
    installed(tensorrt_rtx=other)
    assert TensorRT.load().rtx
    installed(tensorrt=plain)
    with pytest.raises(EngineError) as error:
        TensorRT.load(rtx=True)
    assert str(error.value) == f"TensorRT RTX for Python is not installed: {pip_install('rtx')}"
    installed()
    with pytest.raises(EngineError) as error:
        TensorRT.load()
    assert pip_install("trt") in str(error.value)
    assert pip_install("rtx") in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise ImportError('undefined symbol: Py_2')",
            "TensorRT RTX is installed but cannot be loaded (undefined symbol",
        ),
        ("__version__ = '1.3.0.35'", "TensorRT RTX 1.3.0.35 is too old; install 1.7 or later"),
    ],
)
def test_one_for_another_python_or_too_old_is_named(tmp_path: Path, monkeypatch, code: str, message: str) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    with pytest.raises(EngineError) as error:
        TensorRT.load(rtx=True)
    assert message in str(error.value)
    sys.modules.pop("tensorrt_rtx", None)


# Its plans


class Played(test_engine.TensorRT):
    """The module of TensorRT RTX, whose configurations are made of the recorded surface."""

    __version__ = "1.7.1.116"
    ComputeCapability: Any
    CudaGraphStrategy: Any
    DynamicShapesKernelSpecializationStrategy: Any

    def __init__(self, played_cuda: test_engine.CUDA):
        super().__init__(played_cuda)
        self.surface = fake_tensorrt(RTX)
        self.configurations: list[Any] = []
        self.read: list[bytes] = []
        self.compiled = b""
        self.accepts = True
        self.surface.behaviour |= {
            "IRuntimeConfig.create_runtime_cache": lambda _: instance(self.surface, "IRuntimeCache"),
            "IRuntimeCache.deserialize": lambda _, blob: self.read.append(blob) or self.accepts,
            "IRuntimeCache.serialize": lambda _: Memory(self.compiled),
        }
        for name in ("ComputeCapability", "CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy"):
            setattr(self, name, getattr(self.surface, name))

    def create_runtime_config(self) -> Any:
        self.configurations.append(instance(self.surface, "IRuntimeConfig"))
        return self.configurations[-1]

    def create_execution_context(self, *configuration: Any) -> Any:
        assert configuration == (self.configurations[-1],)
        return super().create_execution_context()


@pytest.fixture
def card(monkeypatch) -> cuda.GPU:
    device = cuda.GPU(0, "NVIDIA GeForce RTX 4090", "8.9", "13.0")
    monkeypatch.setattr(cuda, "current_gpu", lambda: device)
    return device


@pytest.fixture
def trt(gpu: test_engine.CUDA, card: cuda.GPU, installed: Any, monkeypatch, tmp_path: Path) -> Played:
    played = Played(gpu)
    installed(tensorrt_rtx_bindings=played)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return played


def write(path: Path, **changes: Any) -> Path:
    path.write_bytes(b"engine")
    built = {"tensorrt": "RTX 1.7.1.116", "cuda": "", "gpu": "", "compute_capability": "8.9,12.0", "plugin": None}
    write_manifest(path, replace(test_manifest.manifest(path), **{**built, **changes}))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write(tmp_path / "x2.fp16.rtx")


def test_it_computes_and_describes_itself(trt: Played, plan: Path) -> None:
    x = fakes.picture(5, 7)
    with open_engine(plan) as engine:
        np.testing.assert_array_equal(engine.run(x), network(x))
        told = engine.describe()
    assert (told.runtime, told.runtime_version) == ("tensorrt-rtx", "1.7.1.116")
    assert (told.device, told.notes) == ("cuda:0 NVIDIA GeForce RTX 4090", ())


def test_what_it_compiles_is_kept_for_this_card(trt: Played, plan: Path, monkeypatch) -> None:
    trt.compiled = b"kernels"
    open_engine(plan).close()
    assert trt.read == []
    open_engine(plan).close()
    open_engine(plan, specialization="eager").close()  # other kernels
    monkeypatch.setattr(cuda, "current_gpu", lambda: cuda.GPU(0, "NVIDIA GeForce RTX 5090", "12.0", "13.0"))
    open_engine(plan).close()
    assert trt.read == [b"kernels"]


def test_a_cache_that_tensorrt_does_not_take_is_made_again(trt: Played, plan: Path, tmp_path: Path) -> None:
    trt.compiled, trt.accepts = b"old", False
    open_engine(plan, cache=tmp_path / "own").close()
    trt.compiled = b"new"
    open_engine(plan, cache=tmp_path / "own").close()
    open_engine(plan, cache=tmp_path / "own").close()
    assert trt.read == [b"old", b"new"]
    assert not (tmp_path / "cache").exists()


def test_options_are_those_of_tensorrt(trt: Played, plan: Path) -> None:
    open_engine(plan).close()
    open_engine(plan, cuda_graphs=True, specialization="none").close()
    without, with_both = trt.configurations
    assert without.cuda_graph_strategy is without.dynamic_shapes_kernel_specialization_strategy is None
    assert with_both.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    strategy = trt.DynamicShapesKernelSpecializationStrategy.NONE
    assert with_both.dynamic_shapes_kernel_specialization_strategy == strategy
    assert "specialization 'soon' is unknown; choose one of lazy, eager, none" in refusal(plan, specialization="soon")


def test_graphs_are_tensorrts_own(trt: Played, gpu: test_engine.CUDA, plan: Path) -> None:
    with open_engine(plan, cuda_graphs=True) as engine:
        for _ in range(3):
            engine.run(fakes.picture(8, 8))
    assert gpu.launches == 0


def test_the_option_is_for_these_plans_alone(tmp_path: Path) -> None:
    (tmp_path / "x2.plan").touch()
    assert "specialization can be chosen for .rtx files only" in refusal(tmp_path / "x2.plan", specialization="lazy")


def test_a_card_that_it_is_not_for_is_named_with_the_command(trt: Played, plan: Path, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "current_gpu", lambda: cuda.GPU(0, "NVIDIA RTX A6000", "8.6", "13.0"))
    message = refusal(plan)
    assert "was built for compute capability 8.9,12.0, here is 8.6" in message
    assert message.endswith(f"--fp16 --rtx --gpu 8.6 --no-plugin --shapes 64x64 640x360 1280x720 -o {plan}")


def test_a_gpu_that_tensorrt_rtx_is_not_for_is_sent_to_tensorrt(trt: Played, plan: Path, monkeypatch) -> None:
    monkeypatch.setattr(cuda, "current_gpu", lambda: cuda.GPU(0, "NVIDIA H200", "9.0", "13.0"))
    message = refusal(plan)
    assert "was built for compute capability 8.9,12.0, here is 9.0" in message
    assert "TensorRT RTX 1.7.1.116 is for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; build a plan for TensorRT itself" in message


def test_a_plan_of_another_release(trt: Played, plan: Path) -> None:
    write(plan, tensorrt="RTX 1.8.0.1")
    message = refusal(plan)
    assert "was built for TensorRT RTX 1.8.0.1, here is RTX 1.7.1.116; build it here: python -m export.trt" in message
    assert " --rtx --gpu 8.9 " in message


@pytest.mark.parametrize("name", ["x2.plan", "x2.rtx"])
def test_a_plan_of_the_other_tensorrt(
    trt: Played, gpu: test_engine.CUDA, installed: Any, tmp_path: Path, name: str
) -> None:
    """Whatever it is called, its manifest says which of the two made it."""
    path = write(tmp_path / name, tensorrt="10.16.1.11", compute_capability="8.9")
    message = refusal(path)
    assert "was built by TensorRT 10.16.1.11, and here is TensorRT RTX 1.7.1.116 alone" in message
    assert f"{pip_install('trt')}, or build it for that one: python -m export.trt --onnx x2.onnx" in message
    write(path)
    installed(tensorrt=test_engine.TensorRT(gpu))
    message = refusal(path)
    assert "was built by TensorRT RTX 1.7.1.116, and here is TensorRT 8.6.0 alone" in message
    assert pip_install("rtx") in message
    installed()
    assert refusal(path) == f"TensorRT RTX for Python is not installed: {pip_install('rtx')}"


def test_a_plan_under_the_others_name_is_refused(
    trt: Played, gpu: test_engine.CUDA, installed: Any, tmp_path: Path
) -> None:
    """Where both are installed, too: the options of an engine are by its suffix."""
    installed(tensorrt=test_engine.TensorRT(gpu), tensorrt_rtx_bindings=trt)
    path = write(tmp_path / "x2.plan")
    assert "is a plan of TensorRT RTX 1.7.1.116: call it x2.rtx, and its manifest x2.rtx.json" in refusal(path)
    path = write(tmp_path / "x2.rtx", tensorrt="8.6.0", compute_capability="8.9")
    assert "is a plan of TensorRT 8.6.0: call it x2.plan, and its manifest x2.plan.json" in refusal(path)


def test_the_command_that_builds_it_again(tmp_path: Path) -> None:
    made = replace(
        test_manifest.manifest(write(tmp_path / "x2.rtx")), tensorrt="RTX 1.7.1", compute_capability="8.9,12.0"
    )
    assert made.rebuild("a.rtx").startswith("python -m export.trt --onnx x2.onnx --fp16 --rtx --gpu 8.9,12.0 --shapes ")
    general = replace(made, compute_capability="8.0,12.1+")
    assert " --fp16 --rtx --shapes " in general.rebuild("a.rtx")
    assert " --rtx --gpu 13.0 --shapes " in general.rebuild("a.rtx", "13.0")


# What our libraries have code for


@pytest.mark.parametrize(
    ("code", "runs", "not_on"),
    [
        ("sm_80+compute_80+sm_90a", ["8.0", "8.9", "9.0", "12.1"], ["7.5"]),
        ("sm_86+sm_90a", ["8.6", "8.9", "9.0"], ["8.0", "10.0", "12.0"]),
        ("sm_120", ["12.0", "12.1"], ["8.9", "9.0"]),
    ],
)
def test_a_library_without_code_for_a_card_is_refused(
    monkeypatch, code: str, runs: list[str], not_on: list[str]
) -> None:
    opened = SimpleNamespace(ribsr_gpu_code=type("Function", (), {"__call__": lambda _: code.encode()})())
    monkeypatch.setattr(library, "opened", lambda *_: opened)
    library.check_gpus(Path("lib.so"), runs)
    for capability in not_on:
        with pytest.raises(
            library.LibraryError, match=f"lib.so has no code for compute capability {capability}, only sm"
        ):
            library.check_gpus(Path("lib.so"), [*runs, capability])


def test_a_library_that_does_not_say_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(library, "opened", lambda *_: SimpleNamespace())
    with pytest.raises(library.LibraryError, match="does not say which GPUs it has code for: build it again"):
        library.check_gpus(Path("lib.so"), ["8.9"])


def test_what_is_no_library_is_to_be_built_again(tmp_path: Path) -> None:
    (tmp_path / "lib.so").write_text("text")
    advice = r"lib.so cannot be loaded: .*; build it again with `python -m plugins.build --tensorrt-include DIR`"
    with pytest.raises(library.LibraryError, match=advice):
        library.check_gpus(tmp_path / "lib.so", ["8.9"])
