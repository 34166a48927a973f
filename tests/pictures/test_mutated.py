"""Two thousand damaged pictures: each is read, or refused in one line that names it; nothing hangs or dies.

RIBSR_MUTATIONS=SEED tries others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ribsr.base.pictures import PictureError, read_picture
from tests.pictures.corpus import corpus
from tests.pictures.mutations import Mutated, mutated
from tests.pictures.repeating import write_repeating
from tests.pictures.worker import Worker, WorkerError

COUNT, SAMPLE = 2000, 200
SEED = int(os.environ.get("RIBSR_MUTATIONS", "0"))


@pytest.fixture(scope="module")
def damaged() -> list[Mutated]:
    return list(mutated(corpus(), COUNT, SEED))


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as started:
        yield started


def attempt(path: Path) -> str:
    """What is said of a picture that is refused, "" of one that is read."""
    try:
        picture = read_picture(path)
    except PictureError as error:
        return str(error)
    assert picture.pixels.size > 0
    assert picture.pixels.dtype in ("uint8", "uint16")
    return ""


def test_each_is_read_or_refused_in_a_line(damaged: list[Mutated], worker: Worker, tmp_path: Path) -> None:
    wrong, read = [], 0
    for one in damaged:
        path = tmp_path / one.name
        path.write_bytes(one.data)
        try:
            line = worker(attempt, path)
        except WorkerError as error:
            wrong.append(f"{one.name}: {error}")
            continue
        read += not line
        if line and ("\n" in line or not line.startswith(f"{path}: ")):
            wrong.append(f"{one.name}: {line!r}")
        if printed := worker.printed():
            wrong.append(f"{one.name}: printed {printed!r}")
        path.unlink()
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    assert 100 < read < COUNT - 100, read  # else they are not of much use


def sample(damaged: list[Mutated], folder: Path) -> list[Path]:
    folder.mkdir()
    for one in damaged[:: COUNT // SAMPLE]:
        (folder / one.name).write_bytes(one.data)
    return sorted(folder.iterdir())


def upscale(model: Path, source: Path, target: Path) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    from engines.upscale import main

    result = CliRunner().invoke(main, [str(model), str(source), str(target)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_a_folder_of_them_is_enlarged_as_far_as_it_goes(damaged: list[Mutated], worker: Worker, tmp_path: Path) -> None:
    paths = sample(damaged, tmp_path / "in")
    target = tmp_path / "out"
    code, out, err = worker(upscale, write_repeating(tmp_path / "model.onnx"), tmp_path / "in", target)
    assert code == 1
    assert "Traceback" not in err
    for path in paths:
        made = f"{path} " in out  # "PICTURE WxH → RESULT WxH"
        said = [line for line in err.splitlines() if line.startswith(f"Error: {path}: ")]
        said += [line for line in err.splitlines() if line.startswith(f"Error: {target / path.name}: ")]
        assert made == (target / path.name).is_file(), path.name
        assert made or len(said) == 1, f"{path.name}: {said}"
    assert worker.printed() == ""


def originals(paths: list[Path]) -> list[str]:
    """What evaluation says of those that it refuses."""
    from ribsr.benchmark import DataError, read_original

    lines = []
    for path in paths:
        try:
            read_original(path, 2)
        except DataError as error:
            lines.append(str(error))
    return lines


def pairs(folder: Path) -> tuple[int, list[str]]:
    """How many pictures training takes, and what it says of the others."""
    from ribsr.training.data import read_pairs
    from ribsr.training.recipe import Folder

    said: list[str] = []
    return len(read_pairs((Folder(str(folder)),), 2, 2, said.append)), said


def test_evaluation_and_training_name_what_they_refuse(damaged: list[Mutated], worker: Worker, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    paths = sample(damaged, tmp_path / "in")
    lines = worker(originals, paths)
    assert all("\n" not in line and line.startswith(str(tmp_path)) for line in lines)
    used, said = worker(pairs, tmp_path / "in")
    assert used > 0
    for path in paths[::7]:
        assert sum(str(path) in line for line in said) <= 1
    assert used + sum(str(tmp_path) in line for line in said) == len(paths)
    assert all("\n" not in line for line in said)
    assert worker.printed() == ""
