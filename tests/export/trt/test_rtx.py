"""`python -m export.trt --rtx`, over a TensorRT RTX that is played here, as is the process that it builds in."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines import driver
from engines.trt import gpu as cuda
from export.trt import apart
from plugins import fuse, library
from tests.engines.trt.tensorrt_fake import RTX, fake_tensorrt
from tests.export.trt.played import TEN, failed, invoke, make_gpu, written

CHILD = """
import json, os, signal, sys
from pathlib import Path
folder = Path(sys.argv[-1])
task = json.loads((folder / "task.json").read_text())
tell = lambda **values: print(json.dumps(values), flush=True)
"""
"""What the played process begins with."""

PLAIN = """
import onnx
kinds = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY", "Attention": "ATTENTION_INPUT"}
nodes = onnx.load(folder / "model.onnx").graph.node
kind = lambda node: "PLUGIN_V3" if node.domain else kinds.get(node.op_type, "SHUFFLE")
print("TensorRT has its say")
tell(phase="building", start=["Building engine", None, 6])
tell(step=["Building engine", 1])
(folder / "plan").write_bytes(b"rtx " * 100)
layers = [{"Name": n.name, "LayerType": kind(n), "Inputs": [{"Datatype": HALF}]} for n in nodes]
tell(seconds=1.5, layers=layers)
"""


@pytest.fixture
def plays(here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that has the process run a program; the task and the model that it got are noted down."""
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake_tensorrt(RTX))
    (here / "lib").mkdir()
    (here / "lib" / "plugins.so").write_bytes(b"machine code")
    monkeypatch.setenv(library.TENSORRT_VARIABLE, str(here / "lib" / "plugins.so"))
    monkeypatch.setattr(library, "gpu_code", lambda *_: ("sm_80", "compute_80", "sm_90a"))
    monkeypatch.setattr(apart, "loaded", lambda trt: here / "lib" / "libtensorrt_rtx.so.1")

    def no_driver() -> str:
        raise driver.NoGPU("there is no NVIDIA driver here")

    monkeypatch.setattr(driver, "capability", no_driver)
    seen: dict[str, Any] = {}

    def play(program: str = PLAIN, half: str = "HALF") -> dict[str, Any]:
        monkeypatch.setattr(apart, "CHILD", ("-c", CHILD + program.replace("HALF", repr(half))))
        return seen

    real = apart.run

    def run(trt: Any, folder: Path, progress: Any) -> dict[str, Any]:
        seen["task"] = json.loads((folder / "task.json").read_text())
        seen["model"] = onnx.load(folder / "model.onnx")
        told = real(trt, folder, progress)
        seen["link"] = (folder / "lib" / "libtensorrt_rtx.so").readlink()
        return told

    monkeypatch.setattr(apart, "run", run)
    return play


def test_the_command_as_the_readme_gives_it(plays, here) -> None:
    """TensorRT RTX is found by itself where it is the only one; no GPU is asked for."""
    seen = plays()
    result = invoke("--fp16")
    assert result.exit_code == 0, result.output
    assert written(here) == ["x2.fp16.rtx", "x2.fp16.rtx.json"]
    assert Path("x2.fp16.rtx").read_bytes() == b"rtx " * 100
    manifest = json.loads(Path("x2.fp16.rtx.json").read_text())
    expected = {"tensorrt": "RTX 1.7.1.116", "cuda": "", "gpu": "", "compute_capability": "8.0,8.6,8.9,12.0,12.1+"}
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["plugin"]["file"] == "plugins.so"
    count = sum(fuse.count(seen["model"]).values())
    assert manifest["layers"]["plugins fp16"] == count > 0
    assert seen["link"] == here / "lib" / "libtensorrt_rtx.so.1"
    assert seen["task"]["capabilities"] == []
    assert seen["task"]["library"] == str(here / "lib" / "plugins.so")
    assert seen["task"]["shapes"] == [[1, 3, 64, 64], [1, 3, 360, 640], [1, 3, 720, 1280]]
    for words in (
        "TensorRT RTX 1.7.1.116 for compute capability 8.0, 8.6, 8.9, 12.0, 12.1+",
        "not run: there is no NVIDIA driver here",
        "in the network that TensorRT RTX made the engine of",
        "wrote x2.fp16.rtx: plugin, fp16",
    ):
        assert words in result.output


def test_cards_precision_and_sizes_reach_the_builder(plays, here) -> None:
    seen = plays(half="BF16")
    result = invoke("--bf16", "--rtx", "--gpu", "12.0, 8.9", "--size", "48x32", "--workspace", "1", "-o", "a.rtx")
    assert result.exit_code == 0, result.output
    task = seen["task"]
    assert task["capabilities"] == ["8.9", "12.0"]
    assert task["shapes"] == [[1, 3, 32, 48]] * 3
    assert (task["workspace"], task["optimization_level"], task["half"]) == (1 << 30, None, False)
    assert json.loads(Path("a.rtx.json").read_text())["compute_capability"] == "8.9,12.0"


@pytest.mark.parametrize(("file", "arguments"), [("x2.23", ["--fp16", "--no-plugin"]), ("x2.23", ["--bf16"])])
def test_attention_is_for_half_precision(plays, here, files, monkeypatch, file: str, arguments: list[str]) -> None:
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    monkeypatch.setenv(library.TENSORRT_VARIABLE, "")
    monkeypatch.setattr(library, "tensorrt_path", lambda major: here / f"none{major}.so")
    seen = plays(half=arguments[0][2:])
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "form 'attention' instead of the plugin" in result.output
    assert [node.op_type for node in seen["model"].graph.node].count("Attention") == 2
    assert seen["task"]["library"] is None


def test_float32_takes_basic_operators(plays, here, files) -> None:
    (here / "x2.onnx").write_bytes((files / "x2.23.onnx").read_bytes())
    seen = plays(half="FLOAT")
    result = invoke("--size", "48x32")
    assert result.exit_code == 0, result.output
    assert "Attention" not in {node.op_type for node in seen["model"].graph.node}
    assert written(here) == ["x2.fp32.rtx", "x2.fp32.rtx.json"]


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        ("x2", ["--fp16", "--gpu", "9.0"], "does not build for compute capability 9.0; it builds for 7.5, 8.0"),
        ("x2", ["--fp16", "--gpu", "current"], "--gpu current: there is no NVIDIA driver here; name compute capabilit"),
        (
            "x2",
            ["--fp16", "--gpu", "7.5,8.9"],
            "has no code for compute capability 7.5, only sm_80, compute_80, sm_90a",
        ),
        (
            "x2",
            ["--bf16", "--gpu", "7.5,8.9"],
            "bfloat16 needs cards of compute capability 8.0 or later, --gpu names 7.5",
        ),
        ("x2", ["--fp16", "--verify"], "--verify: there is no NVIDIA driver here; leave it out"),
        ("x2", ["--fp16", "--timing-cache", "a"], "times nothing while it builds: leave --timing-cache out"),
        ("x2", ["--fp16", "-o", "x2.plan"], "x2.plan: the name of a plan for TensorRT RTX ends in .rtx"),
        ("x2.attention", [], "has no kernels: give the canonical file and --fp16 or --bf16; or, for small pictures"),
    ],
)
def test_what_cannot_be_had_is_one_line(plays, here, files, file: str, arguments: list[str], message: str) -> None:
    """It is said before anything is built."""
    seen = plays()
    (here / "x2.onnx").write_bytes((files / f"{file}.onnx").read_bytes())
    assert message in failed(invoke(*arguments), here)
    assert not seen


@pytest.mark.parametrize("text", ["8", "sm_89", "8.9,", "8.9;12.0", ""])
def test_what_is_no_capability(here, text: str) -> None:
    result = invoke("--rtx", "--gpu", text)
    assert result.exit_code == 2
    assert "is no compute capability, such as 8.9 or 12.0, nor current" in result.output


def test_cards_are_for_tensorrt_rtx_to_choose(here, monkeypatch) -> None:
    make_gpu(TEN, here, monkeypatch)
    assert "--gpu is for TensorRT RTX, and TensorRT 10.16" in failed(invoke("--fp16", "--gpu", "8.9"), here)


def test_a_plan_of_this_machines_card_is_looked_at(plays, here, monkeypatch) -> None:
    plays()
    monkeypatch.setattr(driver, "capability", lambda: "9.0")
    result = invoke("--fp16")
    assert "the plan is for compute capability 8.0,8.6,8.9,12.0,12.1+, the GPU here has 9.0" in result.output
    monkeypatch.setattr(driver, "capability", lambda: "8.9")
    Path("x2.fp16.rtx").unlink()
    Path("x2.fp16.rtx.json").unlink()
    device = cuda.GPU(0, "NVIDIA GeForce RTX 4090", "8.9", "13.0")
    monkeypatch.setattr(cuda, "current_gpu", lambda: device)
    opened: list[Path] = []

    def engine(path: Path, **options: Any) -> None:
        opened.append(path)
        raise library.LibraryError("it was opened")

    monkeypatch.setattr("engines.trt.rtx_engine.RTXEngine", engine)
    assert "it was opened" in failed(invoke("--fp16"), here)
    assert [path.name for path in opened] == ["x2.fp16.rtx"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            "print('terminate called', file=sys.stderr, flush=True); os.abort()",
            "while reading the graph (SIGABRT, exit code 134: terminate called)",
        ),
        ("tell(phase='building'); os.kill(os.getpid(), signal.SIGKILL)", "while building (SIGKILL, exit code 137)"),
        ("os._exit(0)", "while reading the graph (exit code 0)"),
        ("import no_such_module", "(exit code 1: ModuleNotFoundError: No module named 'no_such_module')"),
        ("print('[1, 2]'); print('7'); os._exit(3)", "while reading the graph (exit code 3)"),
    ],
)
def test_a_process_that_ends_is_one_line(plays, here, program: str, reason: str) -> None:
    plays(program)
    line = failed(invoke("--fp16"), here)
    assert f"TensorRT RTX 1.7.1.116 has ended its process {reason}" in line or reason in line
    assert line.endswith("nothing was written: try --no-plugin, or another release of it")


def test_what_tensorrt_says_is_the_error(plays, here) -> None:
    plays("tell(error='TensorRT RTX 1.7.1.116 cannot take the graph (node 3: no such plugin)')")
    assert failed(invoke("--fp16"), here).endswith("cannot take the graph (node 3: no such plugin)")


def test_a_network_in_another_precision_is_not_written(plays, here) -> None:
    plays(half="FLOAT")
    assert "TensorRT RTX 1.7.1.116 did not build what --fp16 promises" in failed(invoke("--fp16"), here)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_process_and_leaves_nothing(plays, here) -> None:
    plays(
        "signal.signal(signal.SIGINT, signal.SIG_IGN); import time\n"
        f"Path({str(here / 'cache')!r}).mkdir(); Path({str(here / 'cache' / 'pid')!r}).write_text(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    )
    result = invoke("--fp16")
    assert result.exit_code == 130
    assert written(here) == []
    with pytest.raises(ProcessLookupError):
        signal.pidfd_send_signal(_opened(int((here / "cache" / "pid").read_text())), 0)


def _opened(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


def test_the_library_is_the_one_that_is_loaded(tmp_path: Path) -> None:
    from engines.trt.versions import TensorRT

    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 08:01 42   /usr/lib/libc.so.6\n7f02-7f03 rw-p 00000000 00:00 0\n"
        "7f04-7f05 r-xp 00000000 08:01 43   /a folder/libtensorrt_rtx.so.1\n"
    )
    trt = TensorRT(fake_tensorrt(RTX), rtx=True)
    assert apart.loaded(trt, maps) == Path("/a folder/libtensorrt_rtx.so.1")
    maps.write_text("7f02-7f03 rw-p 00000000 00:00 0\n")
    with pytest.raises(apart.EngineError, match=r"has not loaded libtensorrt_rtx.so.1: install it again"):
        apart.loaded(trt, maps)
