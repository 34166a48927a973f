"""`python -m engines.upscale` as a user types it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from engines import Engine, EngineError, OutOfMemory, Tiled, Upscaler, open_engine, planes, tiles, video
from engines import upscaler as upscaler_module
from engines.base import check_finite, out_of_memory
from engines.ort import ORTEngine
from engines.upscale import main
from ribsr.base import pictures
from ribsr.base.pictures import Picture, read_input, read_picture, read_rgb, to_pixels, write_picture
from ribsr.base.sizes import Size
from tests.engines import fakes

ROOT = Path(__file__).resolve().parents[2]


def noise(path: Path, height: int, width: int) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    return noise(tmp_path / "in.png", 9, 13)


@pytest.fixture
def large_picture(tmp_path: Path) -> Path:
    return noise(tmp_path / "large.png", 150, 210)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_picture_is_enlarged(onnx_file: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    command = [sys.executable, "-m", "engines.upscale", onnx_file, picture, out]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{picture} 13x9 → {out} 26x18" in result.stdout
    assert "tiny x2 fp32, onnxruntime" in result.stdout
    assert "ExecutionProvider, " in result.stdout
    assert result.stderr == ""
    with open_engine(onnx_file) as engine:
        expected = to_pixels(engine.run(read_input(picture)))
    np.testing.assert_array_equal(np.asarray(Image.open(out)), expected)


def test_checkpoints_take_options(checkpoint: Path, picture: Path, tmp_path: Path) -> None:
    result = run(
        checkpoint, picture, tmp_path / "o.png", "--precision", "bf16", "--device", "cpu", "--attention", "reference"
    )
    assert result.exit_code == 0, result.output
    assert "tiny x2 bf16, pytorch" in result.stdout


def test_an_existing_output_is_replaced(onnx_file: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"old")
    assert run(onnx_file, picture, out).exit_code == 0
    assert Image.open(out).size == (26, 18)


def test_the_input_and_the_model_are_never_replaced(picture: Path, tmp_path: Path) -> None:
    before = picture.read_bytes()
    model = fakes.write_onnx(tmp_path / "model.png.onnx")
    (tmp_path / "link.png").symlink_to(picture)
    for out in (picture, tmp_path / "x" / ".." / "in.png", tmp_path / "link.png"):
        (tmp_path / "x").mkdir(exist_ok=True)
        result = run(model, picture, out)
        assert result.exit_code == 1
        assert "OUT is the same file as IN; give another name" in result.stderr
    assert picture.read_bytes() == before


@pytest.mark.parametrize(
    ("model", "source", "target", "message"),
    [
        ("{model}", "missing.png", "o.png", "missing.png: no such file"),
        ("{model}", "{picture}", "o.xyz", "cannot write pictures of this kind"),
        ("{model}", "{picture}", "nowhere/o.png", "there is no folder nowhere"),
        ("missing.onnx", "{picture}", "o.png", "missing.onnx: no such file"),
        ("missing.onnx", "missing.png", "o.png", "missing.png: no such file"),  # what is quick to know comes first
        ("model.bin", "{picture}", "o.png", "unknown kind of model file"),
    ],
)
def test_errors_are_one_line(
    onnx_file: Path,
    picture: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    source: str,
    target: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"model": onnx_file, "picture": picture}
    result = run(*(text.format(**known) for text in (model, source, target)))
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_verbose_shows_a_traceback(onnx_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engines.upscale", onnx_file, "missing.png", tmp_path / "o.png"]
    for flags, traceback in (([], False), (["-v"], True)):
        result = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
        assert result.returncode == 1
        assert ("Traceback" in result.stderr) is traceback
        assert "missing.png: no such file" in result.stderr


def test_nan_is_never_written(picture: Path, tmp_path: Path) -> None:
    params = fakes.poisoned(fakes.weights())
    for precision, code in (("fp32", 0), ("fp16", 1)):
        model = fakes.write_onnx(tmp_path / f"{precision}.onnx", params, precision=precision)
        out = tmp_path / f"{precision}.png"
        out.write_bytes(b"what was there before")
        result = run(model, picture, out)
        assert result.exit_code == code, result.output
        assert (out.read_bytes() == b"what was there before") is (code == 1)
    assert "not written, since the engine produced" in result.stderr
    assert "use bf16 or fp32" in result.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_would_become_black_pixels_are_counted(value: float) -> None:
    y = np.zeros((1, 3, 5, 7), np.float32)
    check_finite(y, "a.png: not written, since")
    y[0, 1, 2, :3] = value
    with pytest.raises(
        EngineError, match=r"^a\.png: not written, since the engine produced 3 NaN .* of 105; .*bf16 or fp32"
    ):
        check_finite(y, "a.png: not written, since")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures of two sizes."""
    made = tmp_path / "in"
    made.mkdir()
    for number, name in enumerate(("b.png", "a.webp", "d.PNG", "c.bmp", "e.png")):
        noise(made / name, 9 + number % 2, 13)
    return made


def test_a_folder_of_pictures(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in (".hidden.png", ".hidden", "inner/f.png", "a.gif", "b.HEIC", "c.svg", "d.txt", "e.mp4", "f.x", "scan"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not a picture")
    result = run(onnx_file, folder, out)
    assert result.exit_code == 0, result.output
    assert result.stderr == (
        f"Note: {folder}: left out: 6 of other kinds (a.gif, b.HEIC, c.svg, d.txt, e.mp4, …), "
        "1 without a suffix (scan), 1 subfolder (inner/)\n"
    )
    assert [line.split()[0] for line in result.stdout.splitlines()[:-1]] == [
        str(folder / name) for name in ("a.webp", "b.png", "c.bmp", "d.PNG", "e.png")
    ]
    assert result.stdout.splitlines()[-1].endswith(" s for 5 pictures")
    assert {path.name for path in out.iterdir()} == {"a.webp", "b.png", "c.bmp", "d.PNG", "e.png"}
    with open_engine(onnx_file) as engine:
        for path in out.iterdir():
            expected = to_pixels(engine.run(read_input(folder / path.name)))
            np.testing.assert_array_equal(pixels(path), expected)


def test_damaged_pictures_of_a_folder_do_not_stop_the_others(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "e.png", save_all=True, append_images=frames[1:])
    result = run(onnx_file, folder, tmp_path / "out")
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 3
    assert errors[0].startswith(f"Error: {folder / 'b.png'}: damaged or unreadable")
    assert errors[1].startswith(f"Error: {folder / 'e.png'}: is an animation of 2 pictures")
    assert errors[2] == "Error: 3 of 5 enlarged, 2 failed: b.png, e.png"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.webp", "c.bmp", "d.PNG"}


def no_array() -> Exception:
    """NumPy's own MemoryError."""
    with pytest.raises(MemoryError) as caught:
        np.empty(1 << 60, np.uint8)
    assert type(caught.value) is not MemoryError
    return caught.value


FAILURES = [
    pytest.param(MemoryError(), "out of memory", id="MemoryError"),
    pytest.param(no_array(), "out of memory", id="ArrayMemoryError"),
    pytest.param(OutOfMemory("tiny.onnx: out of memory"), "out of memory", id="OutOfMemory"),
    pytest.param(OSError(28, "No space left on device"), "No space left on device", id="OSError"),
    pytest.param(ValueError("odd"), "odd", id="ValueError"),
    pytest.param(EngineError("tiny.onnx: broken"), "tiny.onnx: broken", id="EngineError"),
    pytest.param(TypeError("odd"), "TypeError: odd", id="TypeError"),
]


def fails_for_one(function: Any, error: Exception, is_it: Callable[..., bool]) -> Any:
    def wrapped(*arguments: Any, **named: Any) -> Any:
        if is_it(*arguments, **named):
            raise error
        return function(*arguments, **named)

    return wrapped


@pytest.mark.parametrize("where", ["read", "convert", "enlarge", "finish", "write"])
@pytest.mark.parametrize(("error", "reason"), FAILURES)
def test_whatever_one_picture_causes_the_others_go_on(
    onnx_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception,
    reason: str,
) -> None:  # fmt: skip
    """In the threads that read and write, and in the one that runs the model. It fails for c.bmp, of 17 columns."""
    noise(folder / "c.bmp", 9, 17)
    owner, name, is_it = {
        "read": (pictures, "read_picture", lambda path, *_: path.name == "c.bmp"),
        "convert": (planes, "split", lambda values: values.shape[1] == 17),
        "enlarge": (ORTEngine, "run", lambda engine, x: x.shape[3] == 17),
        "finish": (tiles, "check_finite", lambda y, _: y.shape[3] == 34),
        "write": (pictures, "write_picture", lambda path, *_: path.name == "c.bmp"),
    }[where]
    monkeypatch.setattr(owner, name, fails_for_one(getattr(owner, name), error, is_it))
    result = run(onnx_file, folder, tmp_path / "out")
    assert result.exit_code == 1
    errors = result.stderr.splitlines()
    assert len(errors) == 2
    assert errors[0].startswith(f"Error: {folder / 'c.bmp'}: ")
    assert reason in errors[0]
    assert errors[1] == "Error: 4 of 5 enlarged, 1 failed: c.bmp"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.webp", "b.png", "d.PNG", "e.png"}


def test_verbose_shows_the_tracebacks_of_a_folder_and_goes_on(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "b.png").write_bytes(b"no picture")
    result = run(onnx_file, folder, tmp_path / "out", "-v")
    assert isinstance(result.exception, EngineError)
    assert "Traceback" in result.stderr
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_picture_too_large_for_a_decoder_is_named(
    onnx_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("ribsr.base.pictures.reading.read_png", fails)
    result = run(onnx_file, folder, tmp_path / "out")
    assert result.exit_code == 1
    for name, line in zip(("b.png", "d.PNG", "e.png"), result.stderr.splitlines(), strict=False):
        assert line == f"Error: {folder / name}: too large for this machine's memory"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.webp", "c.bmp"}


def test_ctrl_c_is_no_affair_of_one_picture(
    onnx_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(engine: ORTEngine, x: np.ndarray) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(ORTEngine, "run", interrupted)
    result = run(onnx_file, folder, tmp_path / "out")
    assert result.exit_code == 130
    assert not list((tmp_path / "out").iterdir())


def test_tiles_asked_for_outlive_a_picture_that_fails(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither forgotten nor made smaller for the pictures after it."""
    (tmp_path / "in").mkdir()
    noise(tmp_path / "in" / "a.png", 150, 210)
    noise(tmp_path / "in" / "b.png", 200, 210)
    run_whole, hopeless = ORTEngine.run, True

    def limited(engine: ORTEngine, x: np.ndarray) -> np.ndarray:
        if hopeless:
            raise MemoryError
        return run_whole(engine, x)

    monkeypatch.setattr(ORTEngine, "run", limited)
    with open_engine(onnx_file) as engine:
        upscaler = Upscaler(engine, tile=Size(140, 100))
        with pytest.raises(EngineError, match="tiles cannot be smaller"):
            upscaler.enlarge(read_rgb(tmp_path / "in" / "a.png"))
        hopeless = False
        asked_for: list[Size | None] = []

        def noted(engine: Engine, tile: Size | None, memory: int | None, promised: int) -> Tiled:
            asked_for.append(tile)
            return Tiled(engine, tile, memory, promised)

        monkeypatch.setattr(upscaler_module, "Tiled", noted)
        upscaler.enlarge(read_rgb(tmp_path / "in" / "b.png"))
    assert asked_for == [Size(140, 100)]


def run_in(encoding: str, *arguments: Path) -> subprocess.CompletedProcess[bytes]:
    """The command as a process whose output has this encoding."""
    command = [sys.executable, "-m", "engines.upscale", *arguments]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)


def test_names_of_other_systems(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    """Latin-1 bytes, which strict UTF-8 cannot print; and an arrow, which Latin-1 cannot."""
    name = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        shutil.copy(os.fsencode(folder / "b.png"), name)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for encoding in ("utf-8:strict", "latin-1:strict", "ascii:strict"):
        result = run_in(encoding, onnx_file, folder, tmp_path / "out")
        assert (result.returncode, result.stderr) == (0, b"")
        assert rb"/caf\xe9.png 13x9" in result.stdout
        assert len(list((tmp_path / "out").iterdir())) == 6


def test_a_folder_goes_on_with_what_is_missing(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    noise(out / "c.bmp", 3, 4)
    noise(out / "e.png", 30, 40)
    noise(out / "a.webp", 30, 40)
    before = (out / "c.bmp").read_bytes()
    for name in ("a.webp", "e.png"):
        (out / name).write_bytes((out / name).read_bytes()[:-20])  # as a copy that broke off
    result = run(onnx_file, folder, out, "--skip-existing")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Note: 1 of 5 are there already\n"
    assert len(result.stdout.splitlines()) == 4 + 1
    assert (out / "c.bmp").read_bytes() == before
    assert pixels(out / "e.png").shape == (18, 26, 3)
    result = run("missing.onnx", folder, out, "--skip-existing")
    assert (result.exit_code, result.output) == (0, "Note: 5 of 5 are there already\n")


def test_folders_that_cannot_be_used(onnx_file: Path, folder: Path, picture: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*.*")}
    for source, target, message in (
        (folder, folder, "OUT is the same folder as IN"),
        (folder, picture, "IN is a folder or several files, so OUT has to be a folder"),
        (folder, tmp_path / "no" / "out", f"there is no folder {tmp_path / 'no'}"),
        (folder / "none", tmp_path / "out", "has no pictures (.png, "),
        (tmp_path / "missing", tmp_path / "out", f"{tmp_path / 'missing'}: no such file"),
        (folder, Path("/proc/out"), "no file can be written to this folder"),
    ):
        (folder / "none").mkdir(exist_ok=True)
        result = run(onnx_file, source, target)
        assert result.exit_code == 1
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
    assert {path: path.read_bytes() for path in folder.glob("*.*")} == before


def test_a_picture_goes_into_a_folder_under_its_name(onnx_file: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(onnx_file, picture, tmp_path / "out").exit_code == 0
    assert pixels(tmp_path / "out" / "in.png").shape == (18, 26, 3)
    assert run(onnx_file, picture, f"{tmp_path / 'new'}/", "--format", "webp").exit_code == 0
    assert pixels(tmp_path / "new" / "in.webp").shape == (18, 26, 3)
    result = run(onnx_file, picture, tmp_path)
    assert "OUT is the same file as IN" in result.stderr


def test_links_are_written_through_and_keep_their_mode(onnx_file: Path, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "x.png", tmp_path / "link.png"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target)
    assert run(onnx_file, picture, link).exit_code == 0
    assert link.is_symlink()
    assert pixels(target).shape == (18, 26, 3)
    assert target.stat().st_mode & 0o777 == 0o640


def test_tiles_that_cut_nothing_are_told_once(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    result = run(onnx_file, folder, tmp_path / "out", "--tile", "10x10")
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "must be 72x72 at least" in result.stderr


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ((8, 8200), "o.webp", "16400x16 is too large for WebP, whose sides have 16383 pixels at most"),
        ((8, 32800), "o.jpg", "65600x16 is too large for JPEG"),
        ((9, 13), "o.bmp", "BMP cannot hold the picture's colour profile"),
        ((9, 13), "n" * 252 + ".png", "File name too long"),
        ((9, 13), "/proc/o.png", "no file can be written to this folder"),
    ],
)
def test_what_cannot_be_written_is_known_before_the_network_runs(
    onnx_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: tuple[int, int],
    target: str,
    reason: str,
) -> None:
    monkeypatch.setattr(ORTEngine, "run", lambda engine, x: pytest.fail("the network ran"))
    picture = noise(tmp_path / "a.png", *source)
    if target == "o.bmp":
        Image.open(picture).save(picture, icc_profile=b"a profile")
    result = run(onnx_file, picture, tmp_path / target)
    assert result.exit_code == 1
    assert reason in result.stderr
    assert result.stderr.count("\n") == 1


def test_notes_are_said_once_for_alike_pictures(onnx_file: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, height in (("a.png", 150), ("b.png", 150), ("c.png", 200)):
        noise(tmp_path / "in" / name, height, 210)
    result = run(onnx_file, tmp_path / "in", tmp_path / "out", "--tile", "100x140")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Note: 210x150 in 10 tiles of 96x112\nNote: 210x200 in 10 tiles of 96x136\n"


def test_ctrl_c_in_a_folder_leaves_whole_pictures(onnx_file: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    noise(source / "000.png", 150, 210)
    for number in range(1, 300):
        shutil.copy(source / "000.png", source / f"{number:03}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "engines.upscale", onnx_file, source, out],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.split() == ["Aborted!"]
    made = list(out.iterdir())
    assert 0 < len(made) < 300
    for path in made:
        assert pixels(path).shape == (300, 420, 3)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_tiles_on_request(onnx_file: Path, large_picture: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    assert run(onnx_file, large_picture, whole).stderr == ""
    result = run(onnx_file, large_picture, cut, "--tile", "100x140")
    assert result.exit_code == 0, result.output
    assert result.stderr == "Note: 210x150 in 10 tiles of 96x112\n"
    np.testing.assert_array_equal(pixels(cut), pixels(whole))  # this network sees two pixels far
    result = run(onnx_file, large_picture, cut, "--tile", "71x200")
    assert result.exit_code == 1
    assert "must be 72x72 at least" in result.stderr


def test_a_model_of_one_size_takes_pictures_of_any(large_picture: Path, picture: Path, tmp_path: Path) -> None:
    model, out = fakes.write_onnx(tmp_path / "static.onnx", shape=(1, 3, 96, 128)), tmp_path / "out.png"
    result = run(model, large_picture, out)
    assert "Note: 210x150 in 9 tiles of 128x96\n" in result.stderr
    with open_engine(fakes.write_onnx(tmp_path / "dynamic.onnx")) as engine:
        expected = to_pixels(engine.run(read_input(large_picture)))
    inside = slice(0, -6)  # at the end of the picture the tiles show its mirror image, the whole nothing
    np.testing.assert_allclose(pixels(out)[inside, inside].astype(int), expected[inside, inside], atol=1)
    assert (
        run(model, picture, out).stderr == "Note: continued by mirroring to 128x96, the smallest that the model takes\n"
    )
    assert Image.open(out).size == (26, 18)


def test_out_of_memory_means_smaller_tiles(
    onnx_file: Path, large_picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tmp_path / "expected.png"
    assert run(onnx_file, large_picture, expected).exit_code == 0
    enough, run_whole = 100 * 150, ORTEngine.run

    def limited(engine: ORTEngine, x: np.ndarray) -> np.ndarray:
        if x.shape[2] * x.shape[3] > enough:
            raise out_of_memory("tiny.onnx", x)
        return run_whole(engine, x)

    monkeypatch.setattr(ORTEngine, "run", limited)
    result = run(onnx_file, large_picture, tmp_path / "out.png")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("Note: out of memory on 210x150; trying smaller tiles\nNote: 210x150 in ")
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), pixels(expected))
    enough = 50 * 50
    result = run(onnx_file, large_picture, tmp_path / "none.png")
    assert result.exit_code == 1
    assert "out of memory on 72x72, and tiles cannot be smaller; free memory" in result.stderr
    assert not (tmp_path / "none.png").exists()


def test_the_colour_profile_is_kept(onnx_file: Path, picture: Path, tmp_path: Path) -> None:
    Image.open(picture).save(picture, icc_profile=b"a profile")
    assert run(onnx_file, picture, tmp_path / "o.png").exit_code == 0
    assert Image.open(tmp_path / "o.png").info["icc_profile"] == b"a profile"


def test_folders_in_folders_files_and_patterns_at_once(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    (folder / "x" / "y").mkdir(parents=True)
    noise(folder / "x" / "y" / "a.png", 5, 6)
    (folder / "x" / "._a.png").write_bytes(b"attributes")
    noise(tmp_path / "one.png", 4, 4)
    noise(tmp_path / "some1.png", 4, 5)
    out = folder / "large"
    arguments = (onnx_file, folder, tmp_path / "one.png", tmp_path / "some*.png", out, "-r", "--format", "png")
    for _ in range(2):  # the second time its own results are there
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        assert result.stderr == f"Note: {folder}: left out: 1 sidecar (x/._a.png)\n"
        assert result.stdout.splitlines()[-1].endswith(" s for 8 pictures")
    made = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert made == ["a.png", "b.png", "c.png", "d.png", "e.png", "one.png", "some1.png", "x/y/a.png"]
    assert pixels(out / "x" / "y" / "a.png").shape == (10, 12, 3)


def test_pictures_that_fail_are_summed_up(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    for number in range(7):
        (folder / f"bad{number}.png").write_bytes(b"not a picture")
    result = run(onnx_file, folder, tmp_path / "out")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "Error: 5 of 12 enlarged, 7 failed: bad0.png, bad1.png, bad2.png, bad3.png, bad4.png, …"
    )
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_a_failure_with_a_name_that_cannot_be_shown(onnx_file: Path, folder: Path, tmp_path: Path) -> None:
    name = os.fsencode(folder) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).write_bytes(b"no picture")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    for encoding in ("utf-8:strict", "ascii:strict", "cp1252:strict"):
        result = run_in(encoding, onnx_file, folder, tmp_path / "out")
        assert result.returncode == 1
        lines = result.stderr.splitlines()
        assert len(lines) == 2, result.stderr
        assert b"caf" in lines[0]
        assert lines[1].startswith(b"Error: 5 of 6 enlarged, 1 failed: caf")
        assert len(list((tmp_path / "out").iterdir())) == 5


def test_what_is_not_carried_over_is_said_once(
    onnx_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pictures.read_picture

    def with_more(path: Path, *arguments: Any) -> Picture:
        dropped = {"a.webp": ("EXIF", "XMP"), "b.png": ("EXIF",)}.get(path.name, ())
        return replace(read(path, *arguments), dropped=dropped)

    monkeypatch.setattr(pictures, "read_picture", with_more)
    result = run(onnx_file, folder, tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "Note: not carried over: EXIF (2x), XMP (1x)\n")
    result = run(onnx_file, folder / "a.webp", tmp_path / "out.png")
    assert (result.exit_code, result.stderr) == (0, "Note: not carried over: EXIF, XMP\n")


def test_quality_and_limits_reach_who_reads_and_writes(
    onnx_file: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quality where a format has one: in a folder of several kinds, it is no reason to refuse the others."""
    noise(folder / "f.jpg", 8, 8)
    read, write = pictures.read_picture, pictures.write_picture
    limits: list[int | None] = []
    qualities: dict[str, int | None] = {}

    def noted_read(path: Path, max_pixels: int | None = None) -> Picture:
        limits.append(max_pixels)
        return read(path)

    def noted_write(path: Path, picture: Picture, quality: int | None = None) -> None:
        qualities[path.name] = quality
        write(path, picture)

    monkeypatch.setattr(pictures, "read_picture", noted_read)
    monkeypatch.setattr(pictures, "write_picture", noted_write)
    result = run(onnx_file, folder, tmp_path / "out", "--quality", "70", "--max-pixels", "5000")
    assert result.exit_code == 0, result.output
    assert limits == [5000] * 6
    assert qualities == dict.fromkeys(("b.png", "c.bmp", "d.PNG", "e.png")) | {"a.webp": 70, "f.jpg": 70}


def test_videos_go_to_who_enlarges_them(
    onnx_file: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pictures; one that fails is one of those that failed."""
    for name in ("a.mp4", "b.mkv"):
        (tmp_path / name).write_bytes(b"a video")
    asked: list[tuple[str, str, Any, Any]] = []

    def enlarge_video(upscaler: Upscaler, source: Path, target: Path, **options: Any) -> video.EnlargedVideo:
        asked.append((source.name, target.name, options["codec"], options["crf"]))
        if source.suffix == ".mkv":
            raise video.VideoError(f"{source}: damaged")
        return video.EnlargedVideo(7, Size(4, 6), Size(8, 12), "libx264", 1.0)

    monkeypatch.setattr(video, "enlarge_video", enlarge_video)
    out = tmp_path / "out"
    result = run(onnx_file, tmp_path / "a.mp4", tmp_path / "b.mkv", picture, out, "--codec", "h264", "--crf", "20")
    assert asked == [("a.mp4", "a.mp4", "h264", 20), ("b.mkv", "b.mkv", "h264", 20)]
    assert result.exit_code == 1
    assert result.stdout.splitlines()[:2] == [
        f"{picture} 13x9 → {out / 'in.png'} 26x18",
        f"{tmp_path / 'a.mp4'} 6x4 → {out / 'a.mp4'} 12x8, 7 frames, libx264",
    ]
    assert result.stderr.splitlines() == [
        f"Error: {tmp_path / 'b.mkv'}: damaged",
        "Error: 2 of 3 enlarged, 1 failed: b.mkv",
    ]
    result = run(onnx_file, tmp_path / "b.mkv", tmp_path / "c.mkv")
    assert (result.exit_code, result.stderr) == (1, f"Error: {tmp_path / 'b.mkv'}: damaged\n")
    result = run(onnx_file, picture, tmp_path / "c.png", "--crf", "20")
    assert "--crf is for videos (.mp4, " in result.stderr
    result = run("missing.onnx", tmp_path / "b.mkv", tmp_path / "c.png")
    assert "c.png: cannot write videos of this kind" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "webp"], "--format is for pictures, and IN holds videos alone"),
        (["--max-pixels", "9"], "--max-pixels is for pictures, and IN holds videos alone"),
        (["--codec", "foo"], "--codec: there is no encoder for foo; choose one of h264 (libx264), "),
        (["--crf", "99"], "--crf: libvpx-vp9 takes 0 to 63"),
        (["--crf", "60", "--codec", "h264"], "--crf: libx264 takes 0 to 51"),
        (["--crf", "1", "--codec", "ffv1"], "--crf: ffv1 is lossless and takes none"),
        (["--crf", "60"], "missing.onnx: no such file"),
        ([], "missing.onnx: no such file"),
    ],
)
def test_what_videos_do_not_take_is_known_without_a_model(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "a.avi").touch()
    (tmp_path / "b.mp4").touch()
    result = run("missing.onnx", tmp_path / "a.avi", tmp_path / "b.mp4", tmp_path / "out", *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_pictures_of_all_kinds_stay_of_their_kind(onnx_file: Path, tmp_path: Path) -> None:
    """Channels and depth, and the opaque picture's colours whether it has an alpha channel or not."""
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(0).integers(0, 2**16, (9, 13, 4), dtype=np.uint16)
    values[..., 3] = 2**16 - 1
    for kind, channels in (("gray", values[..., 0]), ("both", values[..., ::3]), ("rgb", values[..., :3])):
        for depth, made in (("8", (channels >> 8).astype(np.uint8)), ("16", channels)):
            for suffix in ("png", "tif"):
                write_picture(tmp_path / "in" / f"{kind}{depth}.{suffix}", Picture(made))
    write_picture(tmp_path / "in" / "rgba16.png", Picture(values))
    Image.fromarray((values[..., :3] >> 8).astype(np.uint8)).quantize(8).save(tmp_path / "in" / "palette.png")
    result = run(onnx_file, tmp_path / "in", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (0, "")
    for path in (tmp_path / "in").iterdir():
        before, after = read_picture(path), read_picture(tmp_path / "out" / path.name)
        assert (after.channels, after.depth, str(after.size)) == (before.channels, before.depth, "26x18"), path.name
    with_alpha, without = (read_picture(tmp_path / "out" / f"{kind}16.png").pixels for kind in ("rgba", "rgb"))
    np.testing.assert_array_equal(with_alpha[..., :3], without)
    assert (with_alpha[..., 3] == 2**16 - 1).all()


def test_a_kind_that_the_format_cannot_hold_is_known_before_the_network_runs(
    onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ORTEngine, "run", lambda engine, x: pytest.fail("the network ran"))
    write_picture(tmp_path / "deep.png", Picture(np.zeros((9, 13, 3), np.uint16)))
    write_picture(tmp_path / "alpha.png", Picture(np.zeros((9, 13, 4), np.uint8)))
    for source, target, reason in (
        ("deep.png", "o.jpg", "JPEG cannot hold 16 bits per channel; write .png or .tiff"),
        ("alpha.png", "o.jpg", "JPEG cannot hold an alpha channel; write .png"),
        ("deep.png", "o.webp", "WebP cannot hold 16 bits"),
    ):
        result = run(onnx_file, tmp_path / source, tmp_path / target)
        assert result.exit_code == 1
        assert f"Error: {tmp_path / target}: {reason}" in result.stderr
        assert result.stderr.count("\n") == 1
