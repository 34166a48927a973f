"""Runs of two processes, as torchrun starts them: who waits for whom, and how all of them end."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ribsr.base.files import locked
from ribsr.training import recipe
from ribsr.training.loop import read_state, train
from ribsr.training.processes import TrainingError, interruptions, joined
from ribsr.training.recipe import Recipe
from ribsr.training.report import Report

ROOT = Path(__file__).resolve().parents[3]
IMPATIENT = str(Path(__file__).with_name("impatient.py"))

if os.name != "posix":
    pytest.skip("signals and torchrun as on POSIX systems", allow_module_level=True)


def start(folder: Path, plan: Recipe, *program: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 PROGRAM recipe.yaml`, in a process group of its own, as a terminal starts it."""
    import yaml

    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict(plan)))
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *program,
            "recipe.yaml",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_others_wait_for_a_validation_longer_than_any_collective_may_take(plan: Recipe, tmp_path: Path) -> None:
    plan = replace(plan, steps=4, validate_every=2, validation=(str(tmp_path / "pictures"),))
    run = start(tmp_path, plan, IMPATIENT)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert list(column(Path(plan.output) / "validation.csv", "psnr")) == [2, 4]


def trained(folder: Path, plan: Recipe, processes: int, stop: bool) -> None:
    """Runs the recipe to its end, or its first step, in so many processes."""
    arguments = ["--stop-after", "0"] if stop else []
    if processes == 1:
        train(plan, 0.0 if stop else None, Report())
        return
    run = start(folder, plan, "-m", "ribsr", "train", *arguments)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors


@pytest.mark.parametrize("order", [(2, 1), (1, 2)])
def test_any_number_of_processes_trains_alike_and_goes_on_where_another_ended(
    plan: Recipe, tmp_path: Path, order: tuple[int, ...]
) -> None:
    """Five pictures: the processes' shares of the validation differ."""
    pictures = tmp_path / "pictures"
    for number, name in enumerate(("coffee", "chelsea", "coffee")):
        with Image.open(pictures / f"{name}.png") as image:
            image.crop((5 * number, 3, 40, 33)).save(pictures / f"more{number}.png")
    plan = replace(plan, steps=4, log_every=1, validate_every=2, validation=(str(pictures),), betas=(0.9, 0.99))
    alone, shared = (replace(plan, output=str(tmp_path / name)) for name in ("alone", "shared"))
    trained(tmp_path, alone, 1, stop=False)
    for position, processes in enumerate(order, 1):
        trained(tmp_path, shared, processes, stop=position < len(order))
    expected, found = (read_state(Path(each.output) / "state.pt", each) for each in (alone, shared))
    assert expected is not None
    assert found is not None
    assert found["step"] == 4
    for part in ("model", "average"):
        for name, value in expected[part].items():
            torch.testing.assert_close(found[part][name], value, atol=2e-5, rtol=1e-4, msg=f"{part} {name}")
    for table, name in (("log.csv", "loss"), ("validation.csv", "psnr")):
        wanted, got = (column(Path(each.output) / table, name) for each in (alone, shared))
        assert wanted
        assert {step: got[step] for step in wanted} == pytest.approx(wanted, rel=1e-3)


def column(path: Path, name: str) -> dict[int, float]:
    """Of a table whose rows are of steps."""
    with open(path, newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("to_all", [True, False])
def test_a_signal_ends_all_processes_and_the_last_step_is_kept(plan: Recipe, tmp_path: Path, to_all: bool) -> None:
    """Ctrl-C reaches every process, and torchrun sends it to them once more; `kill` reaches torchrun alone."""
    plan = replace(plan, steps=10**9, log_every=10**8, save_every=10**8, validate_every=10**8, clip=None)
    run = start(tmp_path, plan, "-m", "ribsr", "train")
    try:
        while not (Path(plan.output) / "validation.csv").exists():
            assert run.poll() is None
            time.sleep(0.1)
        time.sleep(5)  # some steps
        os.killpg(run.pid, signal.SIGINT) if to_all else os.kill(run.pid, signal.SIGTERM)
        _, errors = run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    state = read_state(Path(plan.output) / "state.pt", plan)
    assert state is not None
    assert f"interrupted: step {state['step']} is in " in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(run.pid, 0)  # nobody is left


def test_a_second_run_into_a_folder_is_refused_by_its_first_process_alone(plan: Recipe, tmp_path: Path) -> None:
    Path(plan.output).mkdir()
    with locked(Path(plan.output) / ".lock"):
        run = start(tmp_path, plan, "-m", "ribsr", "train")
        _, errors = run.communicate(timeout=300)
    assert run.returncode == 1
    told = [line for line in errors.splitlines() if line.startswith("Error: ")]
    assert told == [
        f"Error: {plan.output}: another run is training into this folder; wait for it, stop it, or give another output"
    ]
    assert [path.name for path in Path(plan.output).iterdir()] == [".lock"]


def test_a_part_of_what_torchrun_sets_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="^WORLD_SIZE is set, but not RANK, MASTER_PORT; start processes"), joined():
        pass


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("below_torchrun", [False, True])
def test_a_second_interrupt_is_the_first_once_more_below_torchrun(
    monkeypatch: pytest.MonkeyPatch, below_torchrun: bool
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if below_torchrun:
        monkeypatch.setenv("WORLD_SIZE", "2")
    came: list[type[KeyboardInterrupt]] = []
    interrupted = False
    try:
        with interruptions() as came:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        interrupted = True
    assert interrupted is not below_torchrun
    assert set(came) == {KeyboardInterrupt}
