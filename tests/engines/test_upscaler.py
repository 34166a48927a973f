"""`engines.Upscaler`: pictures of every kind and container, from threads, with too little memory."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines import EngineError, OutOfMemory, Tiled, Upscaler, memory, open_engine
from ribsr.base.pictures import Colour, Picture, PictureError, read_picture, write_picture
from ribsr.base.sizes import Size
from tests.engines.test_memory import Hungry, linux
from tests.engines.test_planes import Soft, noise, with_alpha
from tests.engines.test_tiles import Layer
from tests.resident import printed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    return lambda amount: monkeypatch.setattr(memory, "available", lambda: amount)


@pytest.fixture
def upscaler(onnx_file: Path) -> Iterator[Upscaler]:
    with Upscaler(onnx_file, device="cpu") as opened:
        yield opened


def test_the_docstrings_example_runs(tmp_path: Path) -> None:
    """As it stands there, in a program of its own, with what it imports alone."""
    pytest.importorskip("torch")
    Image.fromarray(noise((12, 17, 3))).save(tmp_path / "photo.jpg")
    example = textwrap.dedent((Upscaler.__doc__ or "").split("\n\n")[1])
    assert example.count("\n") == 2
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", example], cwd=tmp_path, env=environment, check=True)
    with Image.open(tmp_path / "large.png") as large:
        assert (large.size, large.mode) == ((34, 24), "RGB")


def test_importing_it_imports_nothing_heavy() -> None:
    program = (
        "import sys; from engines import Upscaler; print({'numpy', 'PIL', 'torch', 'onnxruntime'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


# What is given and what comes back


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,), (4,)])
def test_arrays(upscaler: Upscaler, onnx_file: Path, dtype: Any, channels: tuple[int, ...]) -> None:
    pixels = noise((20, 30, *channels), dtype)
    made = upscaler(pixels)
    assert (made.shape, made.dtype) == ((40, 60, *channels), dtype)
    with open_engine(onnx_file, device="cpu") as engine:
        np.testing.assert_array_equal(made, Tiled(engine).enlarge(pixels))


def test_views_of_arrays(upscaler: Upscaler) -> None:
    """As cropping, flipping and colour orders leave them; and what is given stays as it is."""
    pixels = noise((40, 50, 3))
    before = pixels.copy()
    view = pixels[3:33:2, ::-1, ::-1]
    np.testing.assert_array_equal(upscaler(view), upscaler(np.ascontiguousarray(view)))
    pixels.setflags(write=False)
    upscaler(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_said_to_be_such(upscaler: Upscaler, dtype: Any, channels: int) -> None:
    batch = noise((3, channels, 12, 17), dtype)
    made = upscaler(batch, layout="NCHW")
    assert (made.shape, made.dtype) == ((3, channels, 24, 34), dtype)
    for pixels, large in zip(batch, made, strict=True):
        np.testing.assert_array_equal(
            large, upscaler(np.ascontiguousarray(pixels.transpose(1, 2, 0))).transpose(2, 0, 1)
        )


def test_a_picture_keeps_what_it_is(upscaler: Upscaler) -> None:
    picture = Picture(noise((9, 13, 4), np.uint16), Colour(b"a profile", dpi=(300, 150)), dropped=("EXIF",))
    made = upscaler(picture)
    assert (made.size, made.depth, made.channels) == (Size(18, 26), 16, 4)
    assert (made.colour, made.dropped) == (picture.colour, picture.dropped)
    np.testing.assert_array_equal(made.pixels, upscaler(picture.pixels))
    np.testing.assert_array_equal(upscaler.enlarge(picture).pixels, made.pixels)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_gives_a_picture(upscaler: Upscaler, tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    write_picture(tmp_path / "in.png", Picture(noise((9, 13, 3))))
    made = upscaler(kind(tmp_path / "in.png"))
    np.testing.assert_array_equal(made.pixels, upscaler(read_picture(tmp_path / "in.png").pixels))
    with pytest.raises(PictureError, match=r"none\.png: no such file"):
        upscaler(kind(tmp_path / "none.png"))


@pytest.mark.parametrize(
    ("mode", "becomes"),
    [("L", "L"), ("LA", "LA"), ("RGB", "RGB"), ("RGBA", "RGBA"), ("1", "L"), ("P", "RGB"), ("I;16", "I;16")],
)
def test_pillow_pictures(upscaler: Upscaler, mode: str, becomes: str) -> None:
    colours = Image.fromarray(noise((9, 13, 4)))
    image = Image.fromarray(noise((9, 13), np.uint16)) if mode == "I;16" else colours.convert("RGB").convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(colours.getchannel("A"))
    image.info.update(icc_profile=b"a profile", dpi=(300, 150))
    made = upscaler(image)
    assert (made.mode, made.size) == (becomes, (26, 18))
    assert made.info == {"icc_profile": b"a profile", "dpi": (300, 150)}
    shown = image if mode == becomes else image.convert(becomes)
    np.testing.assert_array_equal(np.asarray(made), upscaler(np.asarray(shown)))


def test_pillow_pictures_from_files(upscaler: Upscaler, tmp_path: Path) -> None:
    """Not read yet when they are given, with an orientation, and with transparent colours."""
    image, exif = Image.fromarray(noise((9, 13, 3))), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.convert("P").save(tmp_path / "palette.png", transparency=3)
    with Image.open(tmp_path / "turned.png") as opened:
        made = upscaler(opened)
    assert made.size == (18, 26)
    np.testing.assert_array_equal(np.asarray(made), upscaler(tmp_path / "turned.png").pixels)
    with Image.open(tmp_path / "palette.png") as opened:
        assert upscaler(opened).mode == "RGBA"
    with pytest.raises(PictureError, match="convert it to RGB"):
        upscaler(image.convert("CMYK"))


@pytest.mark.parametrize(
    ("picture", "options", "reason"),
    [
        (None, {}, "a picture must be a numpy array, a Pillow picture, a path or a Picture, got NoneType"),
        (b"in.png", {}, "got bytes"),
        ([[1, 2]], {}, "got list"),
        (np.zeros((4, 4), np.float64), {}, "must be a numpy array of uint8, uint16, or float32 .* got float64"),
        (np.zeros((3, 40, 50), np.uint8), {}, r"with 1 to 4 channels .* got \[3, 40, 50\]"),
        (np.zeros((2, 4, 4, 3), np.uint8), {}, r'layout HWC takes one picture, .* give batches as layout="NCHW"'),
        (np.zeros((3, 4, 4), np.uint8), {"layout": "NCHW"}, r"layout NCHW takes \[N, C, H, W\] .* got \[3, 4, 4\]"),
        (np.zeros((2, 4, 4, 3), np.uint8)[:0].transpose(0, 3, 1, 2), {"layout": "NCHW"}, r"got \[0, 3, 4, 4\]"),
        (np.zeros((1, 5, 4, 4), np.uint8), {"layout": "NCHW"}, r"got \[1, 5, 4, 4\]"),
        (np.zeros((1, 3, 4, 4), np.float64), {"layout": "NCHW"}, "got float64"),
        (np.zeros((4, 4), np.uint8), {"layout": "CHW"}, "layout 'CHW' is unknown; choose one of HWC, NCHW"),
        ("in.png", {"layout": "NCHW"}, "layout is for numpy arrays, and the picture is str; leave it out"),
        (np.full((4, 4), 3, np.float32), {}, r"float32 pixels must be in \[0, 1\], these are 3 to 3"),
    ],
)
def test_what_cannot_be_enlarged_is_named(upscaler: Upscaler, picture: Any, options: Any, reason: str) -> None:
    with pytest.raises(EngineError, match=reason) as raised:
        upscaler(picture, **options)
    assert "\n" not in str(raised.value)


# The model


def test_it_closes_what_it_opened_alone(onnx_file: Path) -> None:
    pixels = noise((9, 13, 3))
    with Upscaler(str(onnx_file)) as opened:
        assert opened.describe().model == "tiny"
        assert opened.scale == 2
    opened.close()
    with pytest.raises(EngineError, match="the engine is closed"):
        opened(pixels)
    with open_engine(onnx_file) as engine:
        with Upscaler(engine) as given:
            first = given(pixels)
        np.testing.assert_array_equal(Upscaler(engine)(pixels), first)


def test_options_are_those_of_the_engine(checkpoint: Path, onnx_file: Path) -> None:
    with Upscaler(checkpoint, precision="bf16", device="cpu") as opened:
        assert opened.describe().precision == "bf16"
    with pytest.raises(EngineError, match="attention can be chosen for"):
        Upscaler(onnx_file, attention="sdpa")
    with open_engine(onnx_file) as engine, pytest.raises(EngineError, match="is open already, and device, threads can"):
        Upscaler(engine, device="cpu", threads=1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": None}, "model must be a path, a bundled name or an engine, got None"),
        ({"tile": 128}, "tile must be a Size, .* got 128"),
        ({"tile": "128x128"}, "tile must be a Size, .* got '128x128'"),
        ({"memory": "4"}, "memory must be a number of bytes, got '4'"),
        ({"threads": "4"}, "threads must be a whole number, got '4'"),
    ],
)
def test_options_of_another_type_are_named_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(EngineError, match=reason):
        Upscaler(**{"model": "missing.onnx", **options})


def test_progress_is_told_of_pictures_that_are_cut(upscaler: Upscaler) -> None:
    steps: list[tuple[int, int]] = []
    picture = Picture(noise((150, 210, 3)))
    with Upscaler(Soft(), tile=Size(96, 112)) as cut:
        cut.enlarge(picture, advance=lambda done, count: steps.append((done, count)))
        rows, columns = Tiled(Soft(), Size(96, 112)).spans(picture.size)
    count = len(rows) * len(columns)
    assert count > 1
    assert steps == [(done, count) for done in range(1, count + 1)]
    steps.clear()
    upscaler.enlarge(picture, advance=lambda done, count: steps.append((done, count)))
    assert steps == []


def test_messages_name_where_a_picture_was_to_go() -> None:
    class Broken(Layer):
        def run(self, x: np.ndarray) -> np.ndarray:
            return np.full_like(super().run(x), np.nan)

    picture = Picture(noise((9, 13)))
    with pytest.raises(EngineError, match=r"^large\.png: not written, since the engine produced"):
        Upscaler(Broken()).enlarge(picture, target="large.png")
    with pytest.raises(EngineError, match=r"^x2\.plan: the engine produced"):
        Upscaler(Broken()).enlarge(picture)


# Threads


def pictures() -> list[np.ndarray]:
    """Of all kinds, some larger than a tile of 80x80."""
    return [
        noise((9, 13, 3)), noise((70, 60), np.uint16), noise((100, 90, 3), np.float32), with_alpha(90, 40, np.uint8, 3),
        with_alpha(31, 47, np.uint16, 1), noise((50, 113, 3), np.uint16), noise((90, 40, 3)), noise((1, 1)),
    ]  # fmt: skip


@pytest.mark.parametrize("model", ["onnx_file", "checkpoint"])
def test_eight_threads_get_what_one_gets(request: pytest.FixtureRequest, model: str) -> None:
    file, tile, said = request.getfixturevalue(model), Size(80, 80), list[str]()
    given = pictures() * 2
    with Upscaler(file, device="cpu", tile=tile, say=said.append) as upscaler:
        serial = [upscaler(pixels) for pixels in pictures()] * 2
    notes, said[:] = sorted(said), []
    with Upscaler(file, device="cpu", tile=tile, say=said.append) as upscaler, ThreadPoolExecutor(8) as pool:
        for expected, made in zip(serial, pool.map(upscaler, given), strict=True):
            np.testing.assert_array_equal(made, expected)
    assert sorted(said) == notes
    assert "40x90 in 4 tiles of 40x80" in notes or len(notes) == 3


class Watched(Layer):
    """Runs out of memory above 150x150 pixels; fails if two threads run it, or one gives back what another one uses."""

    def __init__(self, most: int = 150 * 150):
        super().__init__()
        self.most, self.busy, self.released, self.failed = most, threading.Lock(), 0, 0

    def run(self, x: np.ndarray) -> np.ndarray:
        assert self.busy.acquire(blocking=False), "two runs at a time"
        try:
            time.sleep(0.001)
            if x.shape[2] * x.shape[3] > self.most:
                self.failed += 1
                raise OutOfMemory("x2.plan: out of memory")
            return super().run(x)
        finally:
            self.busy.release()

    def release(self) -> None:
        assert self.busy.acquire(blocking=False), "given back while it runs"
        time.sleep(0.001)
        self.released += 1
        self.busy.release()


def test_memory_that_runs_out_in_one_thread_is_no_affair_of_others() -> None:
    engine, said = Watched(), []
    small = [noise((60 + i, 50, 3), seed=i) for i in range(12)]
    large = noise((200, 220, 3))
    given = [*small[:6], large, *small[6:], large]
    with Upscaler(engine, say=said.append) as upscaler, ThreadPoolExecutor(8) as pool:
        made = list(pool.map(upscaler, given))
    assert engine.released == engine.failed > 0
    for pixels, result in zip(given, made, strict=True):
        np.testing.assert_array_equal(result, Tiled(Layer()).enlarge(pixels))
    assert sum(note.startswith("out of memory on 220x200;") for note in said) == 1


def test_tiles_of_a_picture_are_as_large_as_asked_until_memory_lacks() -> None:
    engine, picture = Watched(), Picture(noise((200, 220, 3)))
    with Upscaler(engine, tile=Size(140, 140)) as upscaler:
        assert max(upscaler.tile_for(picture.pixels)) <= 140
        for tile, largest in ((Size(100, 100), 100), (Size(200, 220), 140), (None, 140)):
            engine.seen.clear()
            upscaler.enlarge(picture, tile=tile)
            assert max(max(x.shape[2:]) for x in engine.seen) <= largest
        assert engine.failed == 0
        engine.most = 100 * 100
        upscaler.enlarge(picture, tile=Size(120, 120))
        failed = engine.failed
        assert failed > 0
        upscaler.enlarge(picture, tile=Size(120, 120))  # what a video asks for, frame after frame
        assert engine.failed == failed


def test_smaller_tiles_last_but_not_for_want_of_hope() -> None:
    """The next pictures begin with the tiles that did, not with those of a picture for which none was small enough."""
    engine = Watched()
    with Upscaler(engine) as upscaler:
        upscaler(noise((200, 220, 3)))
        failed = engine.failed
        assert failed > 0
        upscaler(noise((220, 200, 3)))
        assert engine.failed == failed
        engine.most = 10
        with pytest.raises(EngineError, match=r"out of memory on 80x80, and tiles cannot be smaller; free memory"):
            upscaler(noise((200, 220, 3)))
        engine.most, engine.seen = 150 * 150, []
        upscaler(noise((220, 200, 3)))
        assert max(x.shape[2] * x.shape[3] for x in engine.seen) > 80 * 80


def test_a_late_picture_does_not_bring_large_tiles_back() -> None:
    """It began before another one made tiles smaller, and ends after it."""
    began, ended = threading.Event(), threading.Event()

    def advance(done: int, count: int) -> None:
        began.set()
        ended.wait(10)

    engine = Watched(most=300 * 300)
    with Upscaler(engine, tile=Size(280, 280)) as upscaler, ThreadPoolExecutor(1) as pool:
        late = pool.submit(upscaler.enlarge, Picture(noise((300, 60, 3))), advance=advance)
        assert began.wait(10)
        engine.most = 150 * 150
        upscaler(noise((220, 220, 3)))
        ended.set()
        late.result()
        failed = engine.failed
        upscaler(noise((220, 200, 3)))
    assert engine.failed == failed


def test_seconds_are_those_that_the_model_ran() -> None:
    class Slow(Layer):
        def run(self, x: np.ndarray) -> np.ndarray:
            time.sleep(0.02)
            return super().run(x)

    start = time.perf_counter()
    with Upscaler(Slow()) as upscaler, ThreadPoolExecutor(4) as pool:
        list(pool.map(upscaler, [noise((8, 8, 3))] * 8))
        assert 8 * 0.02 <= upscaler.seconds <= time.perf_counter() - start


# Memory


@pytest.mark.parametrize(
    ("channels", "dtype", "runs"), [(3, np.uint8, 1), (1, np.uint16, 1), (4, np.uint16, 2), (2, np.uint8, 2)]
)
@pytest.mark.parametrize(("spare", "whole"), [(1.01, True), (0.99, False)])
def test_alpha_and_depth_count_where_memory_is_foreseen(
    free: Callable[[int | None], None], channels: int, dtype: Any, runs: int, spare: float, whole: bool
) -> None:
    """It takes the result, and floats for each of a tile's runs; the rest is the engine's."""
    result = 4 * channels * np.dtype(dtype).itemsize
    floats = 12 + 2 * 12 * 4
    free(round((result + spare * (100 + runs * floats)) * 900 * 1200 / (1 - memory.MARGIN)))
    said: list[str] = []

    class Nearest(Hungry):
        def run(self, x: np.ndarray) -> np.ndarray:
            return x.repeat(2, 2).repeat(2, 3)

    with Upscaler(Nearest(each=100), say=said.append) as upscaler:
        upscaler(np.full((900, 1200, channels), 7, dtype))
    assert (not said) == whole


def test_all_results_of_a_batch_count(free: Callable[[int | None], None]) -> None:
    """Memory that has been asked for is not taken yet: it is foreseen, and less of it from picture to picture."""
    batch = np.zeros((3, 3, 300, 400), np.uint8)
    tile, result = (100 + 12 + 2 * 12 * 4) * 300 * 400, 3 * 4 * 300 * 400
    for results, whole in ((4, True), (3, False)):
        free(round((results * result + 1.01 * tile) / (1 - memory.MARGIN)))
        said: list[str] = []
        with Upscaler(Hungry(each=100), say=said.append) as upscaler:
            assert upscaler(batch, layout="NCHW").shape == (3, 3, 600, 800)
        assert (not said) == whole


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((10**6, 10**6, 3), "HWC"), ((10**6, 3, 10**5, 10**5), "NCHW"), ((1, 1, 2**31, 2**31), "NCHW")],
)
def test_results_for_which_there_is_no_memory(shape: tuple[int, ...], layout: str) -> None:
    with pytest.raises(EngineError, match=r"^x2\.plan: out of memory: .* by itself") as raised:
        Upscaler(Layer())(np.broadcast_to(np.zeros((1,) * len(shape), np.uint8), shape), layout=layout)
    assert "\n" not in str(raised.value)


MEASURED = """
import sys
import numpy as np
from engines import Upscaler
from ribsr.base.sizes import Size
from tests.engines.test_tiles import Nearest
from tests.resident import memory, start_peak

channels, dtype = int(sys.argv[1]), np.dtype(sys.argv[2])
pixels = np.empty((1500, 2000, channels), dtype)
pixels[:] = np.arange(2000)[:, None] % 256 / (255 if dtype.kind == 'f' else 1)
upscaler = Upscaler(Nearest(), tile=Size(256, 256))
upscaler(pixels[:300, :300])
start_peak()
before = memory("VmRSS")
made = upscaler(pixels)
print((memory("VmHWM") - before) / (4 * 1500 * 2000))
"""


@linux
@pytest.mark.parametrize(("channels", "dtype"), [(3, "uint8"), (4, "uint16"), (2, "uint16"), (4, "float32")])
def test_a_result_takes_its_own_bytes_and_a_tile(channels: int, dtype: str) -> None:
    taken = float(printed(MEASURED, str(channels), dtype))
    own = channels * np.dtype(dtype).itemsize
    assert own - 0.5 < taken < own + 3
