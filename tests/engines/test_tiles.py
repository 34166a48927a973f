"""Tiles: any size for any engine, and the picture that the whole would have given.

The engine here sees as far as a layer does: a convolution, something that mixes a window, a convolution. Its values are
integers, so that results are equal or not; what it sees ends before the middle of the overlap, so that they must be.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines import Description, Engine, EngineError, Tiled, open_engine, samples, tiles
from engines.base import LayerTime, OutOfMemory, check_input
from ribsr.base.sizes import Limits, Size

ANY = Limits()


class Layer(Engine):
    """y = conv(sums of windows(conv(x))), enlarged by repetition, of what `limits`, `batch` and `memory` allow."""

    def __init__(
        self,
        windows: tuple[tuple[int, int], ...] = ((8, 8), (16, 16)),
        scale: int = 2,
        limits: Limits = ANY,
        batch: int | None = None,
        memory: float = math.inf,
    ):
        self.windows, self.scale, self.limits, self.batch, self.memory = windows, scale, limits, batch, memory
        self.seen: list[np.ndarray] = []
        self.closed = False

    def describe(self) -> Description:
        return Description(
            "layer", self.scale, self.windows, "fp32", "none", "1", "0" * 64, "x2.plan", "numpy", "1", "cpu",
            batch=self.batch, limits=self.limits,
        )  # fmt: skip

    def run(self, x: np.ndarray) -> np.ndarray:
        check_input(x, self.describe())
        height, width = Size.of(x)
        self.seen.append(x)
        if height * width > self.memory:
            raise OutOfMemory("x2.plan: out of memory")
        y = convolved(x.astype(np.float64))
        for window in self.windows:
            y = y + window_sums(y, window)
        y = convolved(y)
        return y.repeat(self.scale, 2).repeat(self.scale, 3).astype(np.float32)

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        self.run(x)
        return [LayerTime("rows", x.shape[2]), LayerTime("runs", runs)]

    def close(self) -> None:
        self.closed = True


class Nearest(Layer):
    """y = x, enlarged by repetition."""

    def run(self, x: np.ndarray) -> np.ndarray:
        return x.repeat(2, 2).repeat(2, 3)


def convolved(x: np.ndarray) -> np.ndarray:
    """Neighbours weighted 1 to 9, zeros around the picture."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            y += (3 * i + j + 1) * padded[..., i : i + height, j : j + width]
    return y % 251


def window_sums(x: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """Each pixel's place-weighted sum over its window, of the picture continued by reflection to whole windows."""
    rows, columns = window
    b, c, h, w = x.shape
    height, width = math.ceil(h / rows) * rows, math.ceil(w / columns) * columns
    x = np.pad(x, ((0, 0), (0, 0), (0, height - h), (0, width - w)), "reflect")
    cells = x.reshape(b, c, height // rows, rows, width // columns, columns)
    weights = np.arange(rows)[:, None, None] * 3 + np.arange(columns) + 1
    sums = (cells * weights).sum((3, 5), keepdims=True) % 241
    return np.broadcast_to(sums, cells.shape).reshape(b, c, height, width)[..., :h, :w]


def picture(height: int, width: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 3, height, width)).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 400), width=st.integers(1, 400), tall=st.integers(80, 300), wide=st.integers(80, 300),
    scale=st.integers(2, 4),
)  # fmt: skip
def test_tiles_give_what_the_whole_gives(height: int, width: int, tall: int, wide: int, scale: int) -> None:
    x, engine = picture(height, width), Layer(scale=scale)
    np.testing.assert_array_equal(Tiled(engine, Size(tall, wide)).run(x), Layer(scale=scale).run(x))
    assert all(part.shape[2] <= tall and part.shape[3] <= wide for part in engine.seen)


def test_tiles_off_the_window_grid_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "grid", lambda windows: Size(11, 11))
    x = picture(200, 200)
    assert not np.array_equal(Tiled(Layer(), Size(150, 150)).run(x), Layer().run(x))


def test_no_seams_in_what_trained_weights_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the grid no value of this picture is off by half a step of 8 bits. Off the grid, the same tiles lose 20 dB."""
    pytest.importorskip("torch")
    x = samples.sample("chelsea", Size(64, 150))
    with open_engine("sst-light-x2", device="cpu") as engine:
        whole, tiled = engine.run(x), Tiled(engine, Size(64, 128))
        assert len(tiled.spans(Size(64, 150))[1]) == 2
        on_grid = tiled.run(x) - whole
        monkeypatch.setattr(tiles, "grid", lambda windows: Size(27, 27))
        off_grid = Tiled(engine, Size(64, 128)).run(x) - whole
    assert np.abs(on_grid).max() < 0.5 / 255
    assert np.square(off_grid).mean() > 100 * np.square(on_grid).mean()


@pytest.mark.parametrize("windows", [((16, 24),), ((8, 16), (24, 8)), ((16, 16), (24, 24))])
def test_windows_that_are_not_square_or_do_not_divide_each_other(windows: tuple[tuple[int, int], ...]) -> None:
    x = picture(530, 410, batch=2)
    np.testing.assert_array_equal(Tiled(Layer(windows), Size(256, 224)).run(x), Layer(windows).run(x))


@pytest.mark.parametrize("size", [(100, 120), (160, 200), (161, 120), (100, 201), (700, 90), (99, 500), (1, 1)])
def test_an_engine_gets_no_other_sizes_than_it_takes(size: tuple[int, int]) -> None:
    x, tiled = picture(*size), Tiled(Layer(limits=Limits(Size(100, 120), Size(160, 200))))
    y = tiled.run(x)
    assert y.shape == (1, 3, 2 * size[0], 2 * size[1])
    continued = any(cuts[-1].stop > length for cuts, length in zip(tiled.spans(Size(*size)), size, strict=True))
    if not continued:
        np.testing.assert_array_equal(y, Layer().run(x))


@pytest.mark.parametrize("size", [(150, 170), (151, 171), (400, 170), (37, 600), (1, 1)])
def test_an_engine_of_one_size_gives_what_another_gives_of_the_continued_picture(size: tuple[int, int]) -> None:
    """Away from the end of the picture, it gives what another would of a picture that goes on."""
    x = picture(*size)
    y = Tiled(Layer(limits=Limits.only(150, 170))).run(x)
    assert y.shape == (1, 3, 2 * size[0], 2 * size[1])
    continued = x
    for axis in (2, 3):
        continued = np.pad(continued, [(0, 150 if i == axis else 0) for i in range(4)], "symmetric")
    height, width = (max(2 * (length - 20), 1) for length in size)
    np.testing.assert_array_equal(y[..., :height, :width], Layer().run(continued)[..., :height, :width])


@pytest.mark.parametrize("size", [(37, 41), (1, 1), (2, 3), (149, 170), (290, 340)])
def test_a_picture_is_continued_by_its_mirror_image(size: tuple[int, int]) -> None:
    engine, x = Layer(limits=Limits.only(150, 170)), picture(*size)
    Tiled(engine).run(x)
    row, column = (spans[-1] for spans in Tiled(engine).spans(Size(*size)))
    continued = np.pad(x, ((0, 0), (0, 0), (0, row.stop - size[0]), (0, column.stop - size[1])), "symmetric")
    np.testing.assert_array_equal(engine.seen[-1], continued[:, :, row.start :, column.start :])


@settings(deadline=None)
@given(
    length=st.integers(1, 5000), step=st.sampled_from([5, 8, 16, 24, 64, 96, 120]), low=st.integers(1, 500),
    spare=st.integers(0, 900),
)  # fmt: skip
def test_cuts(length: int, step: int, low: int, spare: int) -> None:
    shared = tiles.least_overlap(step)
    assert shared >= tiles.LEAST_OVERLAP
    assert shared % step == 0
    high = max(low, shared + step) + spare
    if high // step * step >= 4 * shared:
        shared *= 2
    spans = tiles.cut(length, step, low, high)
    assert [span.first for span in spans] == [0, *(span.last for span in spans[:-1])]
    assert spans[-1].last == length
    for span in spans:
        assert span.start % step == 0
        assert low <= span.size <= high
        assert span.start <= span.first < span.last <= span.stop
        assert span.first - span.start >= shared // 2 or span.start == 0
        assert span.stop - span.last >= shared // 2 or span.last == length
    assert len({span.size for span in spans[:-1]}) <= 1
    if len(spans) > 1:  # one less would not do: that many as long as can be, each on the grid, do not reach the end
        assert length > (len(spans) - 2) * (high // step * step - shared) + high


def test_what_cannot_be_tiled_is_said() -> None:
    x = picture(200, 300)
    with pytest.raises(
        EngineError, match="300x200 cannot be cut into tiles of 79x400: .* must be 80x80 at least, .*; give larger ones"
    ):
        Tiled(Layer(), Size(400, 79)).run(x)
    assert Tiled(Layer(), Size(400, 79)).run(picture(200, 79)).shape == (1, 3, 400, 158)
    with pytest.raises(EngineError, match="tiles of 64x64: .*; export or build it for larger pictures"):
        Tiled(Layer(limits=Limits.only(64, 64)), Size(100, 100)).run(x)
    with pytest.raises(EngineError, match="tiles of anyx64: .* 80x80 at least"):
        Tiled(Layer(limits=Limits.only(64, None))).run(x)
    with pytest.raises(EngineError, match="takes pictures of 120x100 to 200x160; give no smaller tiles"):
        Tiled(Layer(limits=Limits(Size(100, 120), Size(160, 200))), Size(100, 119)).run(x)
    with pytest.raises(EngineError, match="takes pictures of 120x100 only; give no smaller tiles"):
        Tiled(Layer(limits=Limits.only(100, 120)), Size(90, 120)).run(x)
    with pytest.raises(EngineError, match="must be float32"):
        Tiled(Layer()).run(x.astype(np.float64))
    with pytest.raises(EngineError, match="takes 2 at a time, got 1; run it once for each"):
        Tiled(Layer(limits=Limits.only(64, 64), batch=2)).run(x)


def test_smaller_tiles_until_the_memory_suffices() -> None:
    engine, x, tile = Layer(memory=100 * 130), picture(190, 640), None
    tried = []
    while True:
        tiled = Tiled(engine, tile)
        try:
            y = tiled.run(x)
            break
        except OutOfMemory:
            tile = tiled.smaller(Size(190, 640))
            assert tile is not None
            tried.append(engine.seen[-1][0, 0].size)
    assert tried == sorted(set(tried), reverse=True)
    np.testing.assert_array_equal(y, Layer().run(x))


def test_tiles_that_cannot_be_smaller() -> None:
    assert Tiled(Layer(), Size(80, 80)).smaller(Size(500, 500)) is None
    assert Tiled(Layer(), Size(80, 160)).smaller(Size(500, 500)) == (80, 80)
    assert Tiled(Layer()).smaller(Size(80, 20)) is None
    assert Tiled(Layer(limits=Limits.only(200, 200))).smaller(Size(500, 500)) is None
    limited = Layer(limits=Limits(Size(100, 100), Size(300, 300)))
    assert Tiled(limited, Size(150, 100)).smaller(Size(500, 500)) == (100, 100)


def test_threads_share_an_engine_and_no_results_are_mixed() -> None:
    tiled = Tiled(Layer(), Size(96, 96))
    pictures = [picture(100 + 17 * i, 300 - 23 * i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for x, y in zip(pictures, pool.map(tiled.run, pictures), strict=True):
            np.testing.assert_array_equal(y, Layer().run(x))


def test_progress_and_closing() -> None:
    engine, steps = Layer(), []
    with Tiled(engine, Size(96, 96)) as tiled:
        tiled.run(picture(100, 200), steps.append)
        rows, columns = tiled.spans(Size(100, 200))
        assert steps == [1] * (len(rows) * len(columns)) == [1] * len(engine.seen)
        assert len(steps) > 1
    assert engine.closed


def test_it_describes_the_other_engine_without_limits() -> None:
    engine = Layer(limits=Limits(Size(100, 120), Size(160, 200)), batch=1)
    described = Tiled(engine).describe()
    assert described.batch == 1
    assert described.limits == ANY
    assert described.windows == engine.windows
    assert described.notes == ("pictures larger than 200x160 are cut into tiles",)
    assert Tiled(Layer(), Size(64, 96)).describe().notes == ("pictures larger than 96x64 are cut into tiles",)
    assert Tiled(Layer()).describe().notes == ()


def test_a_profile_sums_up_the_tiles() -> None:
    engine = Layer()
    with Tiled(engine, Size(96, 96)) as tiled:
        layers = tiled.profile(picture(100, 200), runs=2)
    assert len(engine.seen) > 1
    assert layers == [LayerTime("rows", sum(x.shape[2] for x in engine.seen)), LayerTime("runs", 2 * len(engine.seen))]


def test_memory_that_is_allowed_and_taken_by_the_process_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engines.memory.resident", lambda: 73 * 2**20)
    with pytest.raises(EngineError, match="--memory allows 10 MiB, of which this process takes 73 MiB; allow more"):
        Tiled(Layer(), memory=10 * 2**20).spans(Size(9, 9))


def test_no_memory_for_the_result_is_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        raise MemoryError

    x = picture(100, 200)
    monkeypatch.setattr(np, "empty", full)
    with pytest.raises(OutOfMemory, match=r"x2\.plan: out of memory on a picture of 200x100"):
        Tiled(Layer(), Size(96, 96)).run(x)
