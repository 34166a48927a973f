"""What a command line means: which pictures, where to, and what is refused before a model is opened."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.base import EngineError
from engines.jobs import JobList, find_jobs, unfinished
from ribsr.base.pictures import PictureError

MODEL = Path("x2.onnx")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tests are: names are as a user types them."""
    monkeypatch.chdir(tmp_path)
    MODEL.touch()
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


def plan(*words: str, **options: Any) -> JobList:
    *sources, target = words
    return find_jobs(sources, target, MODEL, **options)


def pairs(*words: str, **options: Any) -> dict[str, str]:
    return {job.source.as_posix(): job.target.as_posix() for job in plan(*words, **options).jobs}


def test_one_picture_becomes_out_or_goes_into_it() -> None:
    make("a.png", "there/b.png")
    assert pairs("a.png", "b.jpg") == {"a.png": "b.jpg"}
    assert pairs("a.png", "there") == {"a.png": "there/a.png"}
    assert pairs("a.png", "new/") == {"a.png": "new/a.png"}
    assert pairs("a.png", "new/", suffix=".webp") == {"a.png": "new/a.webp"}
    assert plan("a.png", "b.jpg").one
    assert plan("a.png", "b.jpg").folder is None
    assert not Path("new").exists()


def test_several_files_folders_and_patterns() -> None:
    make("a.png", "b.jpg", "in/c.tif", "in/d.png", "more/e.png", "more/f.png")
    assert pairs("b.jpg", "a.png", "in", "more/*.png", "out") == {
        "b.jpg": "out/b.jpg",
        "a.png": "out/a.png",
        "in/c.tif": "out/c.tif",
        "in/d.png": "out/d.png",
        "more/e.png": "out/e.png",
        "more/f.png": "out/f.png",
    }
    assert not plan("more/[e].png", "out").one
    assert pairs("more/[e].png", "out") == {"more/e.png": "out/e.png"}
    assert pairs("**/*.jpg", "out") == {"b.jpg": "out/b.jpg"}


def test_a_name_with_brackets_is_a_name_first() -> None:
    make("a[1].png", "a1.png")
    assert pairs("a[1].png", "out.png") == {"a[1].png": "out.png"}


def test_a_picture_that_is_named_twice_is_made_once() -> None:
    make("in/a.png")
    os.symlink(".", "in/again")
    assert pairs("in/a.png", "./in/a.png", "in/*.png", "out") == {"in/a.png": "out/a.png"}
    assert list(pairs("in/**/*.png", "out").values()) == ["out/a.png"]


def test_folders_in_folders_keep_their_structure() -> None:
    make("in/b.png", "in/x/a.png", "in/x/y/a.png", "in/.hidden/c.png", "in/z.txt")
    assert pairs("in", "out", recursive=True) == {
        "in/b.png": "out/b.png",
        "in/x/a.png": "out/x/a.png",
        "in/x/y/a.png": "out/x/y/a.png",
    }
    assert pairs("in", "out") == {"in/b.png": "out/b.png"}
    assert plan("in", "out").notes == ("in: left out: 1 of other kinds (z.txt), 1 subfolder (x/)",)


def test_linked_folders_are_entered_but_not_in_circles() -> None:
    make("in/a.png", "in/x/b.png", "far/c.png")
    os.symlink("..", "in/x/up")
    os.symlink("../in", "in/same")
    os.symlink("../far", "in/far")
    found = pairs("in", "out", recursive=True)
    assert list(found) == ["in/a.png", "in/far/c.png", "in/x/b.png"]


def test_own_results_are_never_taken_as_input() -> None:
    make("in/a.png", "in/x/b.png", "in/large/a.png", "in/large/x/b.png")
    assert list(pairs("in", "in/large", recursive=True)) == ["in/a.png", "in/x/b.png"]
    assert list(pairs("in/**/[ab].png", "in/large")) == ["in/a.png", "in/x/b.png"]
    assert list(pairs("in/*", "in/large", recursive=True)) == ["in/a.png", "in/x/b.png"]
    with pytest.raises(EngineError, match="OUT is the same folder as IN"):
        plan("in", "in/x/..", suffix=".webp")


def test_what_is_left_out_is_counted_and_named() -> None:
    make("in/a.png", "in/._a.png", "in/.hidden.png", "in/b.gif", "in/x/._b.png", "in/x/c", "in/film.mp4")
    assert plan("in", "out", recursive=True).notes == (
        "in: left out: 2 of other kinds (b.gif, film.mp4), 1 without a suffix (x/c), 2 sidecars (._a.png, x/._b.png)",
    )
    make(*(f"many/{number}.gif" for number in range(7)), "many/a.png")
    assert plan("many", "out").notes == ("many: left out: 7 of other kinds (0.gif, 1.gif, 2.gif, 3.gif, 4.gif, …)",)


def test_a_link_that_leads_nowhere_is_a_picture_that_fails() -> None:
    make("in/a.png")
    os.symlink("missing.png", "in/b.png")
    assert list(pairs("in", "out")) == ["in/a.png", "in/b.png"]


def test_a_link_in_a_circle_is_a_picture_that_fails() -> None:
    make("a.png")
    os.symlink("b.png", "b.png")
    assert list(pairs("*.png", "out")) == ["a.png", "b.png"]
    with pytest.raises(PictureError, match="^b.png: is a link that leads nowhere$"):
        plan("a.png", "b.png", "out")
    with pytest.raises(EngineError, match="^b.png: is a link that leads nowhere, and has to be a folder"):
        plan("*.png", "b.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for() -> None:
    make("in/a.png")
    os.mkfifo("in/b.png")
    assert list(pairs("in", "out")) == ["in/a.png"]
    assert plan("in", "out").notes == ("in: left out: 1 of other kinds (b.png)",)
    with pytest.raises(PictureError, match="in/b.png: is a pipe or device, not a file"):
        plan("in/b.png", "out.png")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs folders that cannot be read")
def test_a_folder_that_cannot_be_read_is_left_out() -> None:
    make("in/a.png", "in/closed/b.png")
    Path("in/closed").chmod(0)
    assert plan("in", "out", recursive=True).notes == ("in: left out: 1 subfolder (closed/)",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "missing.png", "out"], "missing.png: no such file"),
        (["m1.png", "a.png", "m2.png", "out"], "^m1.png: no such file; m2.png: no such file$"),
        ([*(f"m{i}.png" for i in range(8)), "out"], "^m0.png: .*; m4.png: no such file; and 3 more$"),
        (["A/*.png", "A"], "A/b.png: OUT is the same file as IN"),
        (["full/**/*.png", "full/out"], r"full/\*\*/\*.png: finds only files in full/out, which are taken for results"),
        (["", "out"], "the name of IN or OUT is empty"),
        (["a.png", ""], "the name of IN or OUT is empty"),
        (["none*.png", "out"], r"none\*.png: no file has such a name"),
        (["a.png", "b.png"], "OUT is the same file as MODEL"),
        (["a.png", "A/../a.png"], "OUT is the same file as IN"),
        (["a.png", "a.png"], "OUT is the same file as IN; give another name"),
        (["a.png", "A/b.png", "c.png"], "c.png: IN is a folder or several files, so OUT has to be a folder"),
        (["A", "c.png"], "c.png: IN is a folder or several files, so OUT has to be a folder"),
        (["A", "no/out"], "no/out: there is no folder no"),
        (["A", "B", "out"], "A/b.png and B/b.png would both become out/b.png; rename one"),
        (["A/*", "B/*", "out"], "A/b.png and B/b.png would both become out/b.png; rename one"),
        (["empty", "out"], r"empty: has no pictures \(\.png, .*\); subfolders are searched with --recursive"),
        (["c.png", "o.gif"], "o.gif: cannot write pictures of this kind"),
        (["c.png", "o"], "o: cannot write pictures of this kind"),
        (["c.png", "no/o.png"], "no/o.png: there is no folder no"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(words: Sequence[str], message: str) -> None:
    make("a.png", "c.png", "A/b.png", "B/b.png", "empty/x.txt")
    make("full/out/a.png")
    os.symlink(MODEL, "b.png")
    with pytest.raises((EngineError, PictureError, OSError), match=message):
        plan(*words)
    assert not Path("out").exists()


def test_a_result_never_replaces_another_input() -> None:
    make("in/a.png", "in/in/a.png")
    with pytest.raises(EngineError, match="^in/a.png: OUT is the same file as IN in/a.png; give another name"):
        plan("in", ".", recursive=True)
    Path("out").mkdir()
    os.link("in/in/a.png", "out/b.png")
    make("b.png")
    with pytest.raises(EngineError, match="^out/b.png: OUT is the same file as IN in/in/a.png"):
        plan("b.png", "in/in/a.png", "out")
    assert pairs("b.png", "out") == {"b.png": "out/b.png"}  # replaced, as it is not read


def test_patterns_in_the_folder_of_results() -> None:
    make("a.png", "in/b.png")
    assert pairs("*.png", ".", suffix=".webp") == {"a.png": "a.webp"}
    assert pairs("in/*.png", ".") == {"in/b.png": "b.png"}


def test_bitmaps_become_gray_pictures() -> None:
    make("in/a.pbm", "in/b.PBM")
    assert pairs("in", "out") == {"in/a.pbm": "out/a.pgm", "in/b.PBM": "out/b.pgm"}
    assert pairs("in/a.pbm", "out/", suffix=".png") == {"in/a.pbm": "out/a.png"}


def test_formats_and_qualities() -> None:
    make("in/a.png", "in/b.jpg")
    assert pairs("in", "out", suffix=".webp") == {"in/a.png": "out/a.webp", "in/b.jpg": "out/b.webp"}
    assert plan("in", "out", quality=80).jobs
    for words, options, message in (
        (["in/a.png", "o.png"], {"suffix": ".webp"}, "--format is for folders"),
        (["in", "out"], {"suffix": ".gif"}, "--format .gif: cannot write pictures of this kind; choose one of .png"),
        (["in", "out"], {"suffix": ".png", "quality": 80}, "--quality is for .avif, .jpeg, .jpg, "),
        (["in/a.png", "o.png"], {"quality": 80}, "--quality is for .avif, .jpeg, .jpg, "),
    ):
        with pytest.raises(EngineError, match=message):
            plan(*words, **options)
    make("in/b.png")
    with pytest.raises(EngineError, match="in/b.jpg and in/b.png would both become out/b.webp"):
        plan("in", "out", suffix=".webp")


def test_names_that_differ_in_case_only(monkeypatch: pytest.MonkeyPatch) -> None:
    make("in/a.png", "more/A.png")
    if Path("in/A.png").exists():
        pytest.skip("this file system ignores case")
    assert len(pairs("in", "more", "out")) == 2
    monkeypatch.setattr("engines.jobs._ignores_case", lambda folder: True)
    with pytest.raises(EngineError, match="in/a.png and more/A.png would both become out/A.png"):
        plan("in", "more", "out")


def test_videos_that_are_named() -> None:
    make("a.mp4", "b.png")
    assert pairs("a.mp4", "b.png", "out", suffix=".webp") == {"a.mp4": "out/a.mp4", "b.png": "out/b.webp"}
    assert pairs("a.mp4", "c.mkv") == {"a.mp4": "c.mkv"}
    make("c.AVI", "d.ts", "d.mkv")  # the first two are only read
    assert pairs("c.AVI", "d.ts", "out") == {"c.AVI": "out/c.mkv", "d.ts": "out/d.mkv"}
    with pytest.raises(EngineError, match=r"d.ts and d.mkv would both become out/d.mkv"):
        plan("d.ts", "d.mkv", "out")
    for name in ("c.avi", "c.TS", "c.flv"):
        make(name)
        with pytest.raises(EngineError, match="--quality is for"):
            plan(name, "c.mp4", quality=80)


def test_what_is_whole_already() -> None:
    make("in/a.png", "in/b.webp", "in/c.jpg", "in/d.tif", "in/e.png")
    Path("out").mkdir()
    profile = bytes(2**21)  # Pillow reads none so long from PNGs
    for name in ("a.png", "b.webp", "c.jpg", "d.tif"):
        Image.new("RGB", (40, 30), "red").save(f"out/{name}", icc_profile=profile)
    todo = plan("in", "out").jobs
    assert [job.source.name for job in unfinished(todo)] == ["e.png"]
    for name in ("a.png", "b.webp", "c.jpg", "d.tif"):
        whole = Path("out", name).read_bytes()
        Path("out", name).write_bytes(whole[: len(whole) // 2])
    assert [job.source.name for job in unfinished(todo)] == ["a.png", "b.webp", "c.jpg", "d.tif", "e.png"]
