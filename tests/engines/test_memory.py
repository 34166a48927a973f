"""How much memory there is, how much a run takes, and what is made of both: tiles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from engines import EngineError, OutOfMemory, Tiled, Upscaler, memory, open_engine, upscale
from engines.memory import GIB, Network
from engines.metadata import read_shapes
from engines.ort import CUDA, ORTEngine
from engines.tiles import FLOATS, Cuts
from ribsr.base.pictures import Picture, bytes_to_write, to_input, to_pixels
from ribsr.base.sizes import Limits, Size
from tests.engines import fakes
from tests.engines.test_tiles import Layer
from tests.resident import printed

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


# What there is


V2 = {
    "proc/self/cgroup": "0::/user/box\n",
    "sys/fs/cgroup/user/box/memory.max": "max\n",
    "sys/fs/cgroup/user/box/memory.current": "1000\n",
    "sys/fs/cgroup/user/memory.max": "5000\n",
    "sys/fs/cgroup/user/memory.current": "3000\n",
    "sys/fs/cgroup/user/memory.stat": "anon 2000\ninactive_file 700\nactive_file 9\n",
}
V1 = {
    "proc/self/cgroup": "4:cpu:/box\n3:memory,other:/box\n0::/elsewhere\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "8000\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "3000\n",
    "sys/fs/cgroup/memory/box/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
}


@pytest.mark.parametrize(
    ("files", "left"),
    [
        pytest.param({}, None, id="no cgroups"),
        pytest.param(V2, 2700, id="limit of the one above"),
        pytest.param({**V2, "sys/fs/cgroup/user/box/memory.max": "1500"}, 500, id="own limit"),
        pytest.param({**V2, "sys/fs/cgroup/user/box/memory.high": "1600"}, 600, id="where it begins to hurt"),
        pytest.param({**V2, "sys/fs/cgroup/user/memory.current": "7000"}, -1300, id="above its limit"),
        pytest.param({**V2, "sys/fs/cgroup/user/memory.max": "max"}, None, id="no limit"),
        pytest.param({**V2, "sys/fs/cgroup/user/memory.max": "what?"}, None, id="unreadable"),
        pytest.param(V1, 5500, id="version 1"),
        pytest.param({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "103000"}, 3000, id="version 1, above"),
        pytest.param({**V1, "proc/self/cgroup": "3:memory:/not/mounted\n"}, 9223372036854671712, id="in a container"),
        pytest.param({**V2, "proc/self/cgroup": "0::/user/../../user/box\n"}, 2700, id="dots"),
    ],
)
def test_what_a_cgroup_leaves(tmp_path: Path, files: dict[str, str], left: int | None) -> None:
    if files.get("proc/self/cgroup", "").startswith("0::/user/.."):
        files = {name.replace("cgroup/user", "cgroup/user/user", 1): text for name, text in files.items()}
    assert memory.free_of_cgroups(tree(tmp_path, files)) == left


def test_the_least_of_all_is_what_there_is(tmp_path: Path) -> None:
    machine = {"proc/meminfo": "MemTotal: 90 kB\nMemAvailable:   40 kB\n", "proc/self/statm": "3 2 1 1 0 1 0\n"}
    assert memory.available(tree(tmp_path, machine)) == 40 * 1024
    assert memory.available(tree(tmp_path, V2)) == 2700
    assert memory.available(tmp_path, address_space=1 << 40) == 2700
    assert memory.available(tmp_path, address_space=2**28) == 0  # all of it is mapped
    tree(tmp_path, {"sys/fs/cgroup/user/memory.current": "9000"})
    assert memory.available(tmp_path) == 0
    assert memory.free_of_system(tmp_path / "nowhere") is None


@linux
def test_this_machine_has_memory() -> None:
    free = memory.available()
    assert free is not None
    assert MIB < free < 2**50
    assert MIB < memory.resident() < 2**40
    assert [memory.told(size) for size in (None, 3 * MIB, GIB / 2, 20 * GIB)] == [
        "an unknown amount", "3 MiB", "0.5 GiB", "20.0 GiB",
    ]  # fmt: skip


# What a run takes


def test_a_network_is_told_by_the_shapes_of_its_weights() -> None:
    windows = ((8, 8), (16, 16), (8, 8))
    shapes = [
        (48, 3, 3, 3), (144, 48, 1, 1), (48, 48, 1, 1), (72, 48, 1, 1), (72, 1, 3, 3), (48, 72, 1, 1),
        (12, 48, 3, 3), (48,), (3, 64, 16), (3, 256, 24), (1, 2, 3),
    ]  # fmt: skip
    expected = Network(48, 72, 3, 72, 48, ((8, 8), (16, 16)))
    assert Network.of(shapes, windows) == expected
    transposed = [shape if len(shape) != 3 else (shape[1], shape[0], shape[2]) for shape in shapes]
    assert Network.of(transposed, windows) == expected
    assert Network.of([], ((8, 8),)) == Network(0, 0, 0, 0, 0, ((8, 8),))


def test_shapes_of_a_file(onnx_file: Path, tmp_path: Path) -> None:
    assert read_shapes(onnx_file) == [(6, 3, 3, 3), (6,), (12, 6, 3, 3), (12,), (12, 3, 1, 1)]
    (tmp_path / "cut.onnx").write_bytes(onnx_file.read_bytes()[:700])
    with pytest.raises(EngineError, match="cut short"):
        read_shapes(tmp_path / "cut.onnx")


MEASURE = """
import json, sys
import numpy as np
from engines import open_engine
from ribsr.base.sizes import Size
from tests.resident import memory, start_peak

path, options, *sizes = sys.argv[1:]
found = []
with open_engine(path, device="cpu", threads=2, **json.loads(options)) as engine:
    if path.endswith(".pt"):  # what PyTorch loads at its first run is no part of later ones
        engine.run(np.zeros((1, 3, 16, 16), np.float32))
    for text in sizes:
        size = Size.parse(text)
        x = np.random.default_rng(0).random((1, 3, *size), np.float32)
        before, predicted = memory("VmRSS"), engine.needs(size)
        start_peak()
        y = engine.run(x)
        peak = memory("VmHWM") - before
        del x, y
        again = engine.needs(size)
        engine.release()
        found.append({"predicted": predicted, "peak": peak, "again": again, "left": memory("VmRSS") - before})
print(json.dumps(found))
"""


def measured(path: Path, *sizes: str, **options: str) -> list[dict[str, int]]:
    """Peaks beside predictions, in a process of its own."""
    return json.loads(printed(MEASURE, str(path), json.dumps(options), *sizes))


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one block with all that takes memory in the published ones."""
    torch = pytest.importorskip("torch")
    import ribsr

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("memory") / "one.pt"
    ribsr.save(
        ribsr.build(
            ribsr.SSTConfig(
                name="one", dim=32, heads=(2, 2, 2), windows=(8, 16, 32), ranks=(16, 16, 24), blocks=1, expansion=1.5,
                upsampler="direct",
            )
        ),
        path,
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def export(checkpoint_of: Path) -> Callable[..., Path]:
    from export.convert import Options, export_onnx

    def made(form: Any, half: bool) -> Path:
        path = checkpoint_of.with_name(f"{form}.{half}.onnx")
        if not path.exists():
            export_onnx(checkpoint_of, path, Options(form, half=half, verify=False), say=lambda line: None)
        return path

    return made


@linux
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        ("canonical", ("128x128", "200x256", "384x384")),
        ("mha", ("256x192",)),
        ("attention", ("128x128", "192x160", "256x256")),
        ("matmul", ("128x96",)),
    ],
)
def test_predictions_for_onnx_runtime(
    export: Callable[..., Path], form: str, sizes: tuple[str, ...], half: bool
) -> None:
    for size in sizes:
        (found,) = measured(export(form, half), size)
        assert found["peak"] == pytest.approx(found["predicted"], rel=0.25, abs=4 * MIB), size
        assert found["again"] == 0  # it is held
        assert found["left"] < 0.25 * found["peak"] + 8 * MIB  # it was given back


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports of a network of two blocks: OpenVINO holds more for that than for one, and no more for four."""
    torch = pytest.importorskip("torch")
    import ribsr
    from export.convert import Options, export_onnx

    torch.manual_seed(0)
    config = ribsr.SSTConfig(
        name="two", dim=32, heads=(2, 2, 2), windows=(8, 16, 32), ranks=(16, 16, 24), blocks=2, expansion=1.5,
        upsampler="direct",
    )  # fmt: skip
    ribsr.save(ribsr.build(config), path := tmp_path_factory.mktemp("memory") / "two.pt")

    def made(form: Any) -> Path:
        options = Options(form, opset=23 if form == "attention" else 17, verify=False)
        export_onnx(path, file := path.with_name(f"{form}.onnx"), options, say=lambda line: None)
        return file

    return made


@linux
@pytest.mark.parametrize("form", ["canonical", "attention", "matmul"])
def test_predictions_for_openvino(blocks: Callable[[str], Path], form: str) -> None:
    openvino = pytest.importorskip("openvino")
    path = blocks(form)
    halves = ["bf16"] if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else []
    for options in ({}, *({"precision": half} for half in halves)):
        (found,) = measured(path, "256x192", runtime="openvino", **options)
        assert found["peak"] == pytest.approx(found["predicted"], rel=0.25, abs=4 * MIB), options
        assert found["again"] == 0
        assert found["left"] < 0.25 * found["peak"] + 8 * MIB


@linux
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predictions_for_pytorch(checkpoint_of: Path, precision: str) -> None:
    for size in ("192x192", "384x384"):
        (found,) = measured(checkpoint_of, size, precision=precision)
        assert found["peak"] == pytest.approx(found["predicted"], rel=0.25, abs=8 * MIB), size


@linux
def test_the_same_size_again_takes_no_more(export: Callable[..., Path]) -> None:
    """With ONNX Runtime's memory patterns it took twice as much."""
    path = export("canonical", False)
    once, *_ = measured(path, "256x256")
    script = MEASURE.replace("y = engine.run(x)", "y = [engine.run(x) for _ in range(3)]")
    command = [sys.executable, "-c", script, str(path), "{}", "256x256"]
    (thrice,) = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert thrice["peak"] < 1.2 * once["peak"] + 4 * MIB


def windows(*sides: int) -> tuple[tuple[int, int], ...]:
    return tuple((side, side) for side in sides)


NETWORKS = {
    "sst-light": Network(48, 72, 3, 72, 12, windows(8, 16, 32, 64)),
    "sst": Network(180, 204, 6, 225, 256, windows(16, 32, 64)),
    "sst-l+": Network(192, 192, 6, 384, 384, windows(16, 32, 48, 96)),
    "esc-rib": Network(64, 64, 4, 256, 12, windows(64)),
    # as they are told by files, with heads and ranks as they are exported
    "sst-light.onnx": Network(48, 72, 3, 72, 48, windows(8, 16, 32, 64)),
    "sst.onnx": Network(192, 192, 6, 225, 256, windows(16, 32, 64)),
    "esc-rib.onnx": Network(64, 64, 4, 256, 64, windows(64)),
}

ON_H200 = [
    # network, form, precision, MiB at 256x256, 640x360 and 1280x720: what the driver counted around a first run
    ("onnxruntime", "sst-light.onnx", "kernel", "fp16", 126, 270, 848),
    ("onnxruntime", "sst-l+", "kernel", "fp16", 368, 1038, 3546),
    ("onnxruntime", "sst.onnx", "kernel", "fp16", 370, 1104, 4164),
    ("onnxruntime", "esc-rib.onnx", "kernel", "fp16", 180, 452, 1548),
    ("onnxruntime", "sst-light.onnx", "canonical", "fp16", 200, None, None),
    # of CUDA graphs, around later runs
    ("later runs", "sst-light.onnx", "kernel", "fp16", 58, 196, 764),
    ("pytorch", "sst-light", "kernel", "fp16", 80, 216, 842),
    ("pytorch", "sst-l+", "kernel", "fp16", 286, 962, 3794),
    ("pytorch", "esc-rib", "kernel", "fp16", 138, 426, 1652),
    # the most that PyTorch's allocator had in use, without the weights
    ("pytorch", "sst-light", "sdpa", "fp32", 274, 915, 3554),
    ("pytorch", "sst-l+", "sdpa", "fp32", 1084, 3463, 13762),
    ("pytorch", "sst", "sdpa", "fp16", 430, 1469, 5748),
    ("pytorch", "sst", "sdpa", "fp32", 815, 2881, 11444),
    ("pytorch", "esc-rib", "sdpa", "fp32", 338, 1147, 4487),
    ("pytorch", "sst-light", "reference", "fp32", 625, 1002, None),
]


@pytest.mark.parametrize(("runtime", "network", "form", "precision", "small", "middle", "large"), ON_H200)
def test_predictions_for_a_gpu(
    runtime: str, network: str, form: str, precision: str, small: int, middle: int | None, large: int | None
) -> None:
    """Against what was measured."""
    for size, expected in zip(("256x256", "640x360", "1280x720"), (small, middle, large), strict=True):
        given = (NETWORKS[network], form, precision, Size.parse(size))
        predicted = memory.pytorch_on_gpu(*given) if runtime == "pytorch" else memory.onnxruntime_on_gpu(*given)
        if runtime == "onnxruntime":
            predicted += memory.FIRST_RUN[runtime]
        assert expected is None or predicted / MIB == pytest.approx(expected, rel=0.25), size


@pytest.mark.parametrize("form", ["attention", "matmul"])
def test_scores_on_a_gpu_are_foreseen(form: str) -> None:
    """Three heads' scores of windows of 64x64, in half precision."""
    size = Size(256, 256)
    predicted = memory.onnxruntime_on_gpu(NETWORKS["sst-light"], form, "fp16", size)
    assert predicted > 2 * 3 * (64 * 64) * 256 * 256
    assert predicted < memory.onnxruntime_on_gpu(NETWORKS["sst-light"], form, "tf32", size)


def test_what_an_engine_holds_on_a_gpu_is_not_needed_again(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_engine(onnx_file, device="cpu") as engine:
        assert isinstance(engine, ORTEngine)
        monkeypatch.setattr(engine, "_description", replace(engine.describe(), device=CUDA, form="kernel"))
        small, large = Size(64, 64), Size(128, 128)
        first = engine.needs(small)
        assert first is not None
        assert first > memory.FIRST_RUN["onnxruntime"]
        engine.run(fakes.picture(64, 64))
        assert engine.needs(small) == 0
        assert 0 < (engine.needs(large) or 0) < memory.FIRST_RUN["onnxruntime"]
        assert (engine.needs(large, batch=2) or 0) > (engine.needs(large) or 0)
        engine.release()
        assert engine.needs(small) == first - memory.FIRST_RUN["onnxruntime"]  # what is loaded stays


# What is made of it


class Hungry(Layer):
    """An engine whose runs take `each` bytes a pixel: of a GPU, if it has one."""

    def __init__(self, each: int, gpu: int | None = None, wrong: float = 1, **options: Any):
        super().__init__(**options)
        self.each, self.gpu, self.limit, self.released = each, gpu, wrong, 0

    def needs(self, size: Size, batch: int = 1) -> int:
        return batch * self.each * size.height * size.width

    def device_memory(self) -> int | None:
        return self.gpu

    def release(self) -> None:
        self.released += 1


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    return lambda amount: monkeypatch.setattr(memory, "available", lambda: amount)


PICTURE = Size(900, 1200)

BYTES = 7
"""Of a pixel of the result, that it takes until it is written."""


def computed(cuts: Cuts) -> int:
    """Pixels that the engine gets."""
    rows, columns = (sum(span.size for span in spans) for spans in cuts)
    return rows * columns


def squares(engine: Hungry, pixels: float) -> Cuts:
    """Those of the largest square tiles that have so many pixels, which anybody would try."""
    side = int(pixels**0.5) // 16 * 16
    return Tiled(engine, Size(side, side)).spans(PICTURE)


def test_tiles_are_the_largest_that_fit(free: Callable[[int | None], None]) -> None:
    engine = Hungry(each=1000)
    for amount in (100, 150, 250, 400, 800, 1500):
        free(amount * MIB)
        tiled = Tiled(engine)
        tile = tiled.largest(PICTURE, BYTES)
        room = 0.8 * amount * MIB - BYTES * 4 * 900 * 1200
        each = 1000 + FLOATS * (1 + 2 * 4)
        assert each * tile.height * tile.width <= room
        if tile != PICTURE:
            assert tile.height % 16 == 0 or tile.height == 900
            assert tile.height * tile.width > 0.4 * room / each
            assert computed(tiled.spans(PICTURE, BYTES)) <= computed(squares(engine, room / each))
    assert tile == PICTURE


def test_tiles_stay_the_same_for_the_same_size(free: Callable[[int | None], None]) -> None:
    tiled = Tiled(Hungry(each=1000))
    free(200 * MIB)
    before = tiled.spans(PICTURE)
    free(2000 * MIB)
    assert tiled.spans(PICTURE) == before
    assert Tiled(Hungry(each=1000)).largest(PICTURE) == PICTURE


def test_who_says_what_it_needs_decides(free: Callable[[int | None], None]) -> None:
    free(100 * MIB)
    assert Tiled(Layer()).largest(PICTURE) == PICTURE  # nobody knows
    assert Tiled(Hungry(each=10**6), Size(900, 1200)).largest(PICTURE) == PICTURE  # the tile that was asked for
    assert Tiled(Hungry(each=1000), memory=memory.resident() + 2 * GIB).largest(PICTURE) == PICTURE
    small = Tiled(Hungry(each=1000), memory=memory.resident() + 150 * MIB).largest(PICTURE)
    assert 100 * 100 < small.height * small.width < 400 * 400
    assert Tiled(Hungry(each=1000, gpu=2 * GIB)).largest(PICTURE) == PICTURE  # its memory is another
    assert Tiled(Hungry(each=1000, gpu=200 * MIB)).largest(PICTURE) < PICTURE
    free(None)
    assert Tiled(Hungry(each=10**6)).largest(PICTURE) == PICTURE


def test_limits_of_the_model_hold(free: Callable[[int | None], None]) -> None:
    free(200 * MIB)
    limits = Limits(Size(100, 120), Size(400, 500))
    tile = Tiled(Hungry(each=1000, limits=limits)).largest(PICTURE)
    assert limits.takes(tile)
    assert Tiled(Hungry(each=10, limits=Limits.only(160, 200))).largest(PICTURE) == (160, 200)
    with pytest.raises(EngineError, match="even in tiles of 200x160, and there are .* free memory, or give --memory"):
        Tiled(Hungry(each=10**5, limits=Limits.only(160, 200))).spans(PICTURE)


def test_no_memory_is_said_at_once(free: Callable[[int | None], None]) -> None:
    free(20 * MIB)
    engine = Hungry(each=1000)
    with pytest.raises(EngineError, match=r"what 1200x900 gives, 2400x1800, takes 29 MiB by itself, and 20 MiB are"):
        Tiled(engine).enlarge(np.zeros((900, 1200, 3), np.uint8), result=BYTES)
    free(50 * MIB)
    with pytest.raises(EngineError, match=r"takes 61 MiB even in tiles of 80x80, and there are 11 MiB for it"):
        Tiled(Hungry(each=10_000)).enlarge(np.zeros((900, 1200, 3), np.uint8), result=BYTES)
    assert engine.seen == []


@pytest.mark.parametrize("size", [(1, 1), (37, 600), (150, 170), (331, 290)])
@pytest.mark.parametrize("tile", [None, Size(96, 112)])
def test_bytes_are_those_of_the_whole(size: tuple[int, int], tile: Size | None, onnx_file: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    with open_engine(onnx_file) as engine:
        tiled = Tiled(engine, tile)
        np.testing.assert_array_equal(tiled.enlarge(pixels), to_pixels(tiled.run(to_input(pixels))))
    limited = Tiled(Layer(limits=Limits.only(100, 120)))
    np.testing.assert_array_equal(limited.enlarge(pixels), to_pixels(limited.run(to_input(pixels))))


@pytest.mark.parametrize("target", ["a.png", "a.webp", "a.avif"])
@pytest.mark.parametrize("promised", [0, 20 * MIB])
def test_tiles_leave_what_writing_takes(free: Callable[[int | None], None], target: str, promised: int) -> None:
    """Of this picture, by its format, and of those before it."""
    free(400 * MIB)
    engine = Hungry(each=1000)
    picture = Picture(np.zeros((*PICTURE, 3), np.uint8))
    Upscaler(engine).enlarge(picture, target=target, promised=promised)
    room = 0.8 * 400 * MIB - promised - bytes_to_write(target, PICTURE.times(2))
    most = max(height * width for height, width in (x.shape[2:] for x in engine.seen))
    assert 0.4 * room < (1000 + FLOATS * (1 + 2 * 4)) * most <= room


def test_nan_stops_at_its_tile(onnx_file: Path) -> None:
    class Broken(Layer):
        def run(self, x: np.ndarray) -> np.ndarray:
            return np.full_like(super().run(x), np.nan)

    engine = Broken()
    with pytest.raises(EngineError, match="^a.png: not written, since the engine produced"):
        Tiled(engine, Size(96, 96)).enlarge(np.zeros((300, 300, 3), np.uint8), prefix="a.png: not written, since")
    assert len(engine.seen) == 1


def test_what_is_held_is_given_back_before_smaller_tiles() -> None:
    class Wrong(Hungry):
        def run(self, x: np.ndarray) -> np.ndarray:
            if x.shape[2] * x.shape[3] > 150 * 150:
                raise OutOfMemory("x2.plan: out of memory")
            events.append("ran")
            return super().run(x)

        def release(self) -> None:
            events.append("released")

    events: list[str] = []
    made = Upscaler(Wrong(each=1)).enlarge(Picture(np.zeros((300, 300, 3), np.uint8)))
    assert made.pixels.shape == (600, 600, 3)
    assert events[:3] == ["released", "released", "ran"]
    assert set(events[2:]) == {"ran"}


def test_memory_is_an_option(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident", lambda: 0)
    values = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "in.png")
    arguments = [str(onnx_file), str(tmp_path / "in.png")]
    whole = CliRunner().invoke(upscale.main, [*arguments, str(tmp_path / "whole.png")])
    cut = CliRunner().invoke(upscale.main, [*arguments, str(tmp_path / "cut.png"), "--memory", "0.008"])
    assert (whole.exit_code, whole.stderr) == (0, "")
    assert cut.exit_code == 0, cut.output
    assert cut.stderr.startswith("Note: 210x150 in ")
    np.testing.assert_array_equal(Image.open(tmp_path / "cut.png"), Image.open(tmp_path / "whole.png"))
    none = CliRunner().invoke(upscale.main, [*arguments, str(tmp_path / "none.png"), "--memory", "0.0001"])
    assert none.exit_code == 1
    assert "what 210x150 gives, 420x300, takes 1 MiB by itself" in none.stderr
    assert none.stderr.count("\n") == 1


# With real limits


LIMITED = """
import resource, sys
from engines import memory, upscale
mapped = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (mapped + int(sys.argv.pop(1)) * 2**20,) * 2)
upscale.main(prog_name="upscale")
"""


@linux
def test_a_large_picture_under_a_real_limit(tmp_path: Path) -> None:
    model = fakes.write_onnx(tmp_path / "x2.onnx")
    ramp = np.arange(3000 * 2000 * 3, dtype=np.uint32).reshape(2000, 3000, 3)
    Image.fromarray((ramp >> 9).astype(np.uint8)).save(tmp_path / "in.ppm")
    command = [sys.executable, "-c", LIMITED, "1400", str(model), str(tmp_path / "in.ppm"), str(tmp_path / "out.ppm")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("Note: 3000x2000 in ")
    assert "out of memory" not in result.stderr
    assert Image.open(tmp_path / "out.ppm").size == (6000, 4000)
    command[3] = "500"
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert "out of memory" in result.stderr or "too large for this machine's memory" in result.stderr


WRITTEN = """
import sys
from pathlib import Path
import numpy as np
from engines import Upscaler
from ribsr.base.pictures import Picture, write_picture
from ribsr.base.sizes import Size
from tests.engines.test_tiles import Nearest
from tests.resident import memory, start_peak

pixels = np.random.default_rng(0).integers(0, 32, (2000, 3000, 3), dtype=np.uint8)  # does not compress to nothing
pixels += (np.arange(3000) // 16).astype(np.uint8)[:, None]
write_picture(Path(sys.argv[1]).with_name("warm" + Path(sys.argv[1]).suffix), Picture(pixels[:9, :9].copy()))
start_peak()
before = memory("VmRSS")
write_picture(sys.argv[1], Upscaler(Nearest(), tile=Size(256, 256)).enlarge(Picture(pixels)))
print((memory("VmHWM") - before) / (4 * 2000 * 3000))
"""


@linux
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "ppm", "bmp", "avif", "webp"])
def test_at_most_twelve_bytes_a_pixel_of_the_result(tmp_path: Path, suffix: str) -> None:
    """But for WebP, whose encoder takes more. What is foreseen is what photographs take, and never too little."""
    taken = float(printed(WRITTEN, str(tmp_path / f"out.{suffix}")))
    expected = bytes_to_write(tmp_path / f"out.{suffix}", Size(4000, 6000)) / (4000 * 6000)
    assert 0.5 * expected < taken < expected + 1
    assert expected <= 12 or suffix == "webp"
