"""Plans as a real TensorRT builds and runs them. Needs a GPU, TensorRT and the plugin library; no PyTorch.

    python tests/engines/trt/one_block.py /tmp/x2.onnx                                      # where PyTorch is
    RIBSR_TEST_ONNX=/tmp/x2.onnx python -m pytest tests/engines/trt/test_plans_on_gpu.py    # where TensorRT is

RIBSR_TEST_ONNX names a canonical float32 file of any x2 model; it may be left out where one Python has both.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from engines import EngineError, open_engine, samples
from engines.compare import LEAST_PSNR, Difference
from engines.trt import gpu as cuda
from engines.trt.versions import TensorRT
from plugins import library
from ribsr.base.files import sha256
from ribsr.base.pictures import Picture, read_picture, to_pixels, write_picture
from ribsr.base.sizes import Size

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[3]
PLAN = "x2.fp16.plan"
SHAPES = ("--shapes", "64x64", "192x128", "320x256")
SIZES = tuple(map(Size.parse, ["64x64", "127x65", "131x97", "192x128", "320x64", "64x256", "319x255", "320x256"]))
"""What SHAPES names, odd sides, and sides that are the profile's limits one by one."""
SMALL, ODD, MIDDLE, LARGE = SIZES[0], SIZES[2], SIZES[3], SIZES[7]

MIB = 1 << 20
NO_MEMORY = 64 * MIB
"""Bytes of GPU memory that another process cannot even start CUDA with."""

UPSCALE = ("engines.upscale", PLAN, "in.png", "out.png")
BUILD = ("export.trt", "--fp16")
Contents = dict[str, str]
Pictures = dict[Size, np.ndarray]


@dataclass(frozen=True)
class Shop:
    """Where commands run. onnx: the file that plans are made of. library: the plugins. cache: XDG_CACHE_HOME."""

    onnx: Path
    library: Path
    cache: Path

    def environment(self, **changes: str) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        own = {library.TENSORRT_VARIABLE: str(self.library), "XDG_CACHE_HOME": str(self.cache), "PYTHONPATH": path}
        return {**os.environ, **own, **changes}

    def run(
        self, folder: Path, *command: str, before: Callable[[], None] | None = None, **changes: str
    ) -> subprocess.CompletedProcess[str]:
        """`python -m COMMAND` in a folder. before: is called in the new process. changes: of its environment."""
        return subprocess.run(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=self.environment(**changes),
            preexec_fn=before,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )

    def build(self, folder: Path, *options: str) -> tuple[Path, str]:
        """The plan that `export.trt` makes in a folder, and what it said."""
        shutil.copy(self.onnx, folder / "x2.onnx")
        done = self.run(folder, "export.trt", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        (plan,) = folder.glob("*.plan")
        assert Path(f"{plan}.json").is_file()
        return plan, done.stdout


# What all tests use, made once


@pytest.fixture(scope="session")
def tensorrt() -> TensorRT:
    try:
        cuda.current_gpu()
        trt = TensorRT.load()
    except EngineError as error:
        pytest.skip(f"needs a GPU and TensorRT: {error}")
    path = library.tensorrt_path(trt.major)
    if not path.is_file():
        pytest.skip(f"needs {path}: python -m plugins.build --tensorrt-include DIR")
    return trt


@pytest.fixture(scope="session")
def shop(tensorrt: TensorRT, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    onnx = tmp_path_factory.mktemp("onnx") / "x2.onnx"
    plugins = library.tensorrt_path(tensorrt.major).resolve()
    made = Shop(onnx, plugins, tmp_path_factory.mktemp("cache"))
    if given := os.environ.get("RIBSR_TEST_ONNX"):
        shutil.copy(given, onnx)
    elif importlib.util.find_spec("torch") is not None:
        script = Path(__file__).with_name("one_block.py")  # a process of its own: two CUDA libraries in one may clash
        subprocess.run([sys.executable, script, onnx], env=made.environment(), check=True)
    else:
        pytest.skip("needs RIBSR_TEST_ONNX, or PyTorch to make an ONNX file (tests/engines/trt/one_block.py)")
    return made


@pytest.fixture(scope="session")
def dynamic(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan for SHAPES, as a user builds it; beside it x2.onnx and its manifest."""
    plan, _ = shop.build(tmp_path_factory.mktemp("dynamic"), "--fp16", *SHAPES)
    assert plan.name == PLAN
    return plan


@pytest.fixture(scope="session")
def pictures() -> Pictures:
    return {size: samples.sample("astronaut", size) for size in SIZES}


@pytest.fixture(scope="session")
def expected(shop: Shop, pictures: Pictures) -> Pictures:
    """What ONNX Runtime makes of the pictures, in float32."""
    with open_engine(shop.onnx, device="cpu") as engine:
        return {size: engine.run(x) for size, x in pictures.items()}


@pytest.fixture(scope="session")
def alone(dynamic: Path, pictures: Pictures) -> Pictures:
    """What the plan makes of the pictures, each in an engine of its own."""
    made = {}
    for size, x in pictures.items():
        with open_engine(dynamic) as engine:
            made[size] = engine.run(x)
    return made


@pytest.fixture
def folder(dynamic: Path, tmp_path: Path) -> Path:
    """A folder with the ONNX file, the plan, its manifest and a picture that it takes."""
    for name in ("x2.onnx", PLAN, f"{PLAN}.json"):
        shutil.copy(dynamic.with_name(name), tmp_path)
    write_picture(tmp_path / "in.png", Picture(to_pixels(samples.sample("coffee", Size(96, 128)))))
    return tmp_path


def contents(folder: Path) -> Contents:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def failure(done: subprocess.CompletedProcess[str], folder: Path, before: Contents) -> str:
    """The one line of a command that failed and left the folder as it was."""
    said = [line for line in done.stderr.splitlines() if line.strip() and not re.match(r"[a-z ]+: \d+ s$|Note: ", line)]
    assert done.returncode == 1, f"exit code {done.returncode}: {done.stdout}{done.stderr}"
    assert [line.startswith("Error: ") for line in said] == [True], done.stderr
    assert contents(folder) == before
    assert not list(folder.glob(".*")), "a temporary folder is left"
    return said[0]


def psnr(y: np.ndarray, expected: np.ndarray) -> float:
    """dB, of a result without NaN or infinite values."""
    found = Difference.between(expected, y)
    assert not found.nan
    return found.psnr


# Running


def test_pictures_of_many_sizes(dynamic, pictures, expected, alone) -> None:
    """Right at every size, the same when a size comes again, and whatever came before."""
    with open_engine(dynamic) as engine:
        for size, x in [*pictures.items(), *reversed(pictures.items())]:
            y = engine.run(x)
            assert y.shape == (1, 3, *size.times(2))
            assert psnr(y, expected[size]) >= LEAST_PSNR["fp16"], str(size)
            assert np.array_equal(y, engine.run(x)), str(size)
            assert np.array_equal(y, alone[size]), str(size)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 63, 64), "takes pictures of 64x64 to 320x256, got 64x63; give --tile, or build one .* --shapes"),
        ((1, 3, 256, 321), "takes pictures of 64x64 to 320x256, got 321x256"),
        ((2, 3, 64, 64), "takes 1 at a time, got 2"),
        ((1, 4, 64, 64), r"the input must be \[B, 3, H, W\]"),
    ],
)
def test_shapes_outside_the_profile(dynamic, pictures, alone, shape, message) -> None:
    with open_engine(dynamic) as engine:
        with pytest.raises(EngineError, match=message):
            engine.run(np.zeros(shape, np.float32))
        assert np.array_equal(engine.run(pictures[SMALL]), alone[SMALL])


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_threads_share_an_engine(dynamic, pictures, alone, cuda_graphs) -> None:
    """Each thread takes the sizes in another order, each size three times in a row."""

    def differing(first: int) -> list[Size]:
        order = [size for size in (*SIZES[first:], *SIZES[:first]) for _ in range(3)]
        return [size for size in order * 2 if not np.array_equal(engine.run(pictures[size]), alone[size])]

    with open_engine(dynamic, cuda_graphs=cuda_graphs) as engine, ThreadPoolExecutor(6) as pool:
        assert list(pool.map(differing, range(6))) == [[]] * 6


def test_cuda_graphs_when_sizes_change(dynamic, pictures, alone) -> None:
    """A size is recorded when it comes for the second time, and forgotten when another one comes."""
    a, b, c = MIDDLE, ODD, SMALL
    with open_engine(dynamic, cuda_graphs=True) as engine:
        for n, size in enumerate([a, a, a, b, b, a, a, c, c, c, a, b, a, a]):
            assert np.array_equal(engine.run(pictures[size]), alone[size]), f"run {n}, at {size}"


def test_memory_comes_back(dynamic, pictures) -> None:
    def use() -> int:
        """Free memory while an engine with several contexts is open."""
        with open_engine(dynamic, cuda_graphs=True) as engine, ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda size: engine.run(pictures[size]), [size for size in SIZES for _ in range(4)]))
            return cuda.free_memory()

    use()  # what CUDA, TensorRT and the plugins load once stays
    before = cuda.free_memory()
    for _ in range(3):
        assert use() < before
    assert before - cuda.free_memory() <= 8 * MIB


def test_static_plan(shop, tmp_path, pictures, expected) -> None:
    plan, _ = shop.build(tmp_path, "--fp16", "--size", "192x128")
    with open_engine(plan) as engine:
        assert (engine.describe().batch, engine.describe().limits.fixed) == (1, MIDDLE)
        y = engine.run(pictures[MIDDLE])
        assert psnr(y, expected[MIDDLE]) >= LEAST_PSNR["fp16"]
        assert np.array_equal(engine.run(pictures[MIDDLE]), y)
        with pytest.raises(EngineError, match="takes pictures of 192x128 only, got 64x64"):
            engine.run(pictures[SMALL])


@pytest.mark.parametrize(
    ("options", "precision", "sizes"),
    [
        (("--fp16", "--no-plugin", "--size", "64x64"), "fp16", [SMALL]),
        (("--fp16", "--no-plugin", "--shapes", "64x64", "64x64", "131x97"), "fp16", [SMALL, ODD, SMALL]),
        (("--size", "64x64"), "fp32", [SMALL]),
    ],
)
def test_plans_without_plugins(shop, tmp_path, pictures, expected, options, precision, sizes) -> None:
    plan, said = shop.build(tmp_path, *options)
    assert "form 'matmul' instead of the plugin" in said
    manifest = json.loads(Path(f"{plan}.json").read_text())
    assert (manifest["form"], manifest["precision"], manifest["plugin"]) == ("matmul", precision, None)
    with open_engine(plan) as engine:
        for size in sizes:
            assert psnr(engine.run(pictures[size]), expected[size]) >= LEAST_PSNR[precision]


def test_upscaling_as_the_readme_gives_it(shop, folder) -> None:
    for options in ((), ("--cuda-graphs",)):
        done = shop.run(folder, *UPSCALE, *options)
        assert done.returncode == 0, done.stderr
        assert "in.png 128x96 → out.png 256x192" in done.stdout
        assert read_picture(folder / "out.png").size == Size.parse("256x192")


# Building again


def test_pictures_smaller_than_the_plan_takes(shop, folder) -> None:
    write_picture(folder / "in.png", Picture(to_pixels(samples.sample("coffee", Size(63, 64)))))
    done = shop.run(folder, *UPSCALE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Note: continued by mirroring to 64x64, the smallest that the model takes" in done.stderr
    assert read_picture(folder / "out.png").size == Size.parse("128x126")


def test_second_build_with_the_timing_cache(shop, dynamic, tmp_path, pictures, expected) -> None:
    (kept,) = (shop.cache / "ribsr").iterdir()
    before = kept.read_bytes()
    assert before
    plan, said = shop.build(tmp_path, "--fp16", *SHAPES)
    assert "timing cache" not in said
    assert list((shop.cache / "ribsr").iterdir()) == [kept]
    with open_engine(plan) as engine:
        assert psnr(engine.run(pictures[MIDDLE]), expected[MIDDLE]) >= LEAST_PSNR["fp16"]


def test_a_file_that_is_no_timing_cache(shop, folder) -> None:
    (folder / "own.timing").write_bytes(b"nonsense" * 100)
    before = contents(folder)
    done = shop.run(folder, *BUILD, "--size", "64x64", "--no-verify", "--timing-cache", "own.timing")
    assert "own.timing: is no timing cache of this TensorRT and GPU; name another" in failure(done, folder, before)


# Bad input: one line, and nothing lost


def cut(path: Path, off: int) -> None:
    """Takes bytes off a file's end."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - off])


def agree(folder: Path) -> None:
    """Makes the manifest agree with whatever is the plan, so that TensorRT gets to see it."""
    manifest = folder / f"{PLAN}.json"
    values = {**json.loads(manifest.read_text()), "plan_sha256": sha256(folder / PLAN)}
    manifest.write_text(json.dumps(values))


def cut_plan(folder: Path, shop: Shop) -> None:
    cut(folder / PLAN, 1000)


def cut_plan_with_its_hash(folder: Path, shop: Shop) -> None:
    cut(folder / PLAN, 1000)
    agree(folder)


def no_plan(folder: Path, shop: Shop) -> None:
    (folder / PLAN).write_bytes(b"no plan at all" * 1000)
    agree(folder)


def garbled_plan(folder: Path, shop: Shop) -> None:
    content = (folder / PLAN).read_bytes()
    (folder / PLAN).write_bytes(b"\xff" * 64 + content[64:])
    agree(folder)


def no_manifest(folder: Path, shop: Shop) -> None:
    (folder / f"{PLAN}.json").unlink()


def another_plugin_build(folder: Path, shop: Shop) -> None:
    (folder / shop.library.name).write_bytes(shop.library.read_bytes() + b"\0")


def two_onnx(folder: Path, shop: Shop) -> None:
    shutil.copy(folder / "x2.onnx", folder / "y2.onnx")


def no_onnx(folder: Path, shop: Shop) -> None:
    (folder / "x2.onnx").write_bytes(b"something")


def cut_onnx(folder: Path, shop: Shop) -> None:
    cut(folder / "x2.onnx", (folder / "x2.onnx").stat().st_size // 2)


def as_it_is(folder: Path, shop: Shop) -> None:
    pass


NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
NO_PLUGIN = {library.TENSORRT_VARIABLE: "none.so"}
NO_LIBRARY = {library.TENSORRT_VARIABLE: "x2.onnx"}


@pytest.mark.parametrize(
    ("prepare", "command", "changes", "message"),
    [
        (cut_plan, UPSCALE, {}, f"{PLAN}: is not the plan that {PLAN}.json was written for"),
        (cut_plan_with_its_hash, UPSCALE, {}, f"{PLAN}: TensorRT cannot read this plan"),
        (no_plan, UPSCALE, {}, f"{PLAN}: TensorRT cannot read this plan"),
        (garbled_plan, UPSCALE, {}, f"{PLAN}: TensorRT cannot read this plan"),
        (no_manifest, UPSCALE, {}, f"{PLAN}: its manifest {PLAN}.json is missing"),
        (as_it_is, UPSCALE, NO_PLUGIN, "which is neither beside it nor at none.so"),
        (another_plugin_build, UPSCALE, {}, f"{PLAN}: was built with another build of"),
        (as_it_is, UPSCALE, NO_GPU, "the NVIDIA driver finds no GPU"),
        (as_it_is, BUILD, NO_GPU, "the NVIDIA driver finds no GPU"),
        (as_it_is, BUILD, NO_PLUGIN, "none.so does not exist"),
        (as_it_is, BUILD, NO_LIBRARY, "x2.onnx cannot be loaded"),
        (two_onnx, BUILD, {}, "2 ONNX files to choose from: x2.onnx, y2.onnx; name one with --onnx"),
        (no_onnx, BUILD, {}, "there is no ONNX file of this toolkit here (not x2.onnx: of another tool, or damaged)"),
        (no_onnx, (*BUILD, "--onnx", "x2.onnx"), {}, "x2.onnx: not an ONNX file"),
        (cut_onnx, (*BUILD, "--onnx", "x2.onnx"), {}, "x2.onnx: not an ONNX file, or cut short"),
        (as_it_is, (*BUILD, "--shapes", "64x64", "32x32", "128x128"), {}, "must not shrink from MIN over OPT to MAX"),
        (as_it_is, (*BUILD, "-o", "nowhere/x2.plan"), {}, "there is no folder nowhere"),
        (as_it_is, (*BUILD, "--no-plugin", "--score-limit", "0.1"), {}, "the limit is 0.1 GiB"),
    ],
)
def test_bad_input_is_one_line(shop, folder, prepare, command, changes, message) -> None:
    prepare(folder, shop)
    before = contents(folder)
    assert message in failure(shop.run(folder, *command, **changes), folder, before)


def test_bfloat16_needs_a_newer_tensorrt(tensorrt, shop, folder) -> None:
    if tensorrt.has_bfloat16:
        pytest.skip("this TensorRT has bfloat16")
    before = contents(folder)
    done = shop.run(folder, "export.trt", "--bf16")
    assert "--bf16 needs TensorRT 10 or later" in failure(done, folder, before)


def test_plugins_of_another_tensorrt(tensorrt, shop, folder) -> None:
    strangers = (10, 11) if tensorrt.major < 10 else (8, 9)
    paths = [library.DEFAULT.with_name(f"libribsr_tensorrt{major}.so") for major in strangers]
    others = [path for path in paths if path.is_file()]
    if not others:
        pytest.skip("needs a plugin library with the other interface: python -m plugins.build --tensorrt-include DIR")
    before = contents(folder)
    done = shop.run(folder, *BUILD, **{library.TENSORRT_VARIABLE: str(others[0].resolve())})
    assert "it was built for another TensorRT" in failure(done, folder, before)


# Too little memory, a full disk, Ctrl-C


@contextmanager
def memory_held(leaving: int = 0) -> Iterator[None]:
    """This process holds all of the GPU's memory but about `leaving` bytes."""
    held: list[int] = []
    size = 1 << 30
    try:
        while size >= MIB:
            try:
                if cuda.free_memory() - leaving < size:
                    raise cuda.CUDAError("cudaErrorMemoryAllocation", "not to be taken")
                held.append(int(cuda.call("cudaMalloc", size)))
            except cuda.CUDAError:
                size //= 2
        yield
    finally:
        for address in held:
            cuda.call("cudaFree", address)


def test_too_little_memory_for_a_picture(dynamic, pictures, alone) -> None:
    """The engine can be used again when there is some."""
    with open_engine(dynamic) as engine:
        with memory_held(), pytest.raises(EngineError, match="out of memory on a picture of 320x256"):
            engine.run(pictures[LARGE])
        assert np.array_equal(engine.run(pictures[LARGE]), alone[LARGE])


@pytest.mark.parametrize("leaving", [NO_MEMORY, 600 * MIB, 900 * MIB])
@pytest.mark.parametrize("command", [UPSCALE, (*BUILD, "--size", "320x256", "--no-verify", "-o", "new.plan")])
def test_too_little_memory_for_a_command(shop, folder, tmp_path_factory, command, leaving) -> None:
    """It fails where it is certain that it must, and somewhere on the way it fails cleanly or comes through."""
    before = contents(folder)
    with memory_held(leaving):  # with a cache of its own: what is measured here is of no use to others
        done = shop.run(folder, *command, XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache")))
    if leaving == NO_MEMORY or done.returncode != 0:
        assert "memory" in failure(done, folder, before).lower()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_full_disk(shop, dynamic, tmp_path) -> None:
    with small_disk(tmp_path):
        done = shop.run(tmp_path, *BUILD, "--onnx", str(shop.onnx), *SHAPES, "--no-verify")
        assert "No space left on device" in failure(done, tmp_path, {})


def test_plan_that_cannot_be_written(shop, dynamic, folder) -> None:
    """As on a full disk, by a limit to the size of files; the older plan stays."""
    limit = dynamic.stat().st_size // 2
    before = contents(folder)
    done = shop.run(
        folder,
        *(*BUILD, *SHAPES, "--no-verify"),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert "File too large" in failure(done, folder, before)


def test_ctrl_c_in_the_middle_of_a_build(shop, folder, tmp_path_factory) -> None:
    """The older plan stays, and nothing else is left."""
    before = contents(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", *BUILD],
        cwd=folder,
        env=shop.environment(XDG_CACHE_HOME=str(tmp_path_factory.mktemp("cache"))),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(600):
            if process.poll() is not None or list(folder.glob(".*.tmp")):
                break
            time.sleep(0.1)
        time.sleep(3)
        assert process.poll() is None, f"it ended too soon to be interrupted: {process.communicate()}"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.split() == ["Aborted!"]
    assert contents(folder) == before
    assert not list(folder.glob(".*"))
