"""Training runs of a tiny network on a CPU: interrupted, continued, shared, diverging."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ribsr
from ribsr.base.errors import RibsrError
from ribsr.base.files import locked
from ribsr.benchmark import DataError
from ribsr.training import fast, recipe
from ribsr.training.loop import Run, TrainingError, initial_model, read_state, train
from ribsr.training.recipe import Folder, Recipe
from ribsr.training.report import Report
from tests.ribsr.training.conftest import TINY

ROOT = Path(__file__).resolve().parents[3]


class Said(Report):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def state(plan: Recipe) -> dict[str, Any]:
    found = read_state(Path(plan.output) / "state.pt", plan)
    assert found is not None
    return found


def rows(plan: Recipe, name: str) -> list[list[str]]:
    with open(Path(plan.output) / name, newline="") as file:
        return list(csv.reader(file))


def assert_equal_states(a: Recipe, b: Recipe) -> None:
    one, two = state(a), state(b)
    assert one["step"] == two["step"]
    for part in ("model", "average"):
        for key, value in one[part].items():
            assert torch.equal(value, two[part][key]), (part, key)
    for index, values in one["optimizer"]["state"].items():
        for key, value in values.items():
            assert torch.equal(value, two["optimizer"]["state"][index][key]), (index, key)


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a run end, without any farewell, before it makes this step."""
    update = Run.update

    def dying(run: Run) -> None:
        if run.step == step:
            raise KeyboardInterrupt
        update(run)

    monkeypatch.setattr(Run, "update", dying)


def test_a_killed_run_reaches_the_same_weights(plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = replace(plan, output=str(tmp_path / "killed"), validation=(str(tmp_path / "pictures"),))
    train(plan, None, Report())
    with monkeypatch.context() as patch:
        kill_at(5, patch)
        with pytest.raises(KeyboardInterrupt):
            train(killed, None, Report())
    assert state(killed)["step"] == 3
    assert [row[0] for row in rows(killed, "log.csv")] == ["step", "2", "4"]
    said = Said()
    train(killed, None, said)
    assert said.lines[0] == f"going on from step 3 in {tmp_path / 'killed' / 'state.pt'}"
    assert_equal_states(plan, killed)
    assert [row[0] for row in rows(killed, "log.csv")] == ["step", "2", "4", "6"]
    validation = rows(killed, "validation.csv")
    assert [row[:2] for row in validation] == [["step", "set"], ["3", "pictures"], ["6", "pictures"]]
    assert any(line.startswith("step 6: pictures ") for line in said.lines)
    train(killed, None, said)
    assert_equal_states(plan, killed)


def test_it_learns_and_writes_a_checkpoint(plan: Recipe) -> None:
    plan = replace(plan, steps=40, log_every=10)
    train(plan, None, Report())
    losses = [float(row[1]) for row in rows(plan, "log.csv")[1:]]
    assert losses[-1] < 0.5 * losses[0]
    model = ribsr.load(Path(plan.output) / "tiny-x2.safetensors")
    assert model.config == TINY
    average = state(plan)["average"]
    for key, value in model.state_dict().items():
        assert torch.equal(value, average[key])
        assert not torch.equal(value, state(plan)["model"][key])


def test_stopping_after_a_time_is_no_loss(plan: Recipe, tmp_path: Path) -> None:
    stopped = replace(plan, output=str(tmp_path / "stopped"))
    train(plan, None, Report())
    train(stopped, 0, Report())
    assert state(stopped)["step"] == 1
    train(stopped, None, Report())
    assert_equal_states(plan, stopped)


@pytest.mark.parametrize(("asked", "compiles"), [(None, False), (False, False), (True, True)])
def test_on_a_cpu_nothing_compiles_unasked(
    plan: Recipe, monkeypatch: pytest.MonkeyPatch, asked: bool | None, compiles: bool
) -> None:
    prepare, seen, said = fast.prepare, [], Said()

    def spy(model: Any, device: torch.device, half: bool, compiled: bool) -> Any:
        seen.append(compiled)
        return prepare(model, torch.device("cpu"), half, False)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fast, "prepare", spy)
    train(replace(plan, compile=asked, steps=2, warmup=0), None, said)
    assert seen == [compiles]
    assert any("the first step compiles the model" in line for line in said.lines) == compiles


def test_a_state_is_kept_by_another_thread_while_a_step_is_under_way(
    plan: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    differentiate, said = Run._differentiate, Said()

    def endless(run: Run, *batch: Any) -> None:
        differentiate(run, *batch)
        if run.step == 4:
            thread = threading.Thread(target=run.keep)
            thread.start()
            thread.join()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_differentiate", endless)
        with pytest.raises(KeyboardInterrupt):
            train(plan, None, said)
    assert "interrupted: step 4 is in" in said.lines[-1]
    assert state(plan)["step"] == 4


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_with_its_state_written(
    plan: Recipe, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two states: nothing of the four steps made is lost, and the handlers are the old ones afterwards."""
    stopped = replace(plan, output=str(tmp_path / "stopped"))
    handlers = [signal.getsignal(of) for of in (signal.SIGINT, signal.SIGTERM)]
    update = Run.update

    def signalled(run: Run) -> None:
        update(run)
        if run.step == 4:
            os.kill(os.getpid(), number)

    said = Said()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "update", signalled)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, None, said)
    assert said.lines[-1] == f"interrupted: step 4 is in {tmp_path / 'stopped' / 'state.pt'}; the same command goes on"
    assert [signal.getsignal(of) for of in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert state(stopped)["step"] == 4
    train(stopped, None, Report())
    train(plan, None, Report())
    assert_equal_states(plan, stopped)


def test_a_run_killed_before_its_validation_makes_up_for_it(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = replace(plan, steps=3, validation=(str(tmp_path / "pictures"),))

    def dying(run: Run) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "validate", dying)
        with pytest.raises(KeyboardInterrupt):
            train(killed, None, Report())
    assert [row[0] for row in rows(killed, "validation.csv")] == ["step"]
    for _ in range(2):
        train(killed, None, Report())
        assert [row[0] for row in rows(killed, "validation.csv")] == ["step", "3"]


def test_a_run_killed_within_its_validation_scores_the_other_sets(
    plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shutil.copytree(tmp_path / "pictures", tmp_path / name)
    killed = replace(plan, steps=3, validation=(str(tmp_path / "a"), str(tmp_path / "b")))
    score = Run._score

    def dying(run: Run, name: str, paths: list[Path]) -> None:
        if name == "b":
            raise KeyboardInterrupt
        score(run, name, paths)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_score", dying)
        with pytest.raises(KeyboardInterrupt):
            train(killed, None, Report())
    for _ in range(2):
        train(killed, None, Report())
        assert [row[:2] for row in rows(killed, "validation.csv")[1:]] == [["3", "a"], ["3", "b"]]


def test_an_output_that_is_a_file_is_named(plan: Recipe, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for output in (tmp_path / "a.png", tmp_path / "a.png" / "run"):
        with pytest.raises(TrainingError, match=rf"^output {output}: is no folder, and none can be made there \("):
            train(replace(plan, output=str(output)), None, Report())


@pytest.mark.usefixtures("interruptible")
def test_where_another_process_ends_first_the_last_step_is_kept(plan: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes get a signal; one that waits for another, which has ended by it, gets an error instead."""
    update, said = Run.update, Said()

    def deserted(run: Run) -> None:
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("Connection closed by peer")
        update(run)

    monkeypatch.setattr(Run, "update", deserted)
    with pytest.raises(KeyboardInterrupt):
        train(plan, None, said)
    assert state(plan)["step"] == 4
    assert said.lines[-2] == "after the signal: Connection closed by peer"
    assert "interrupted: step 4 is in" in said.lines[-1]


def test_a_picture_that_goes_missing_ends_no_run(plan: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        shutil.copytree(tmp_path / "pictures", tmp_path / name)
    update, said = Run.update, Said()

    def losing(run: Run) -> None:
        (tmp_path / "a" / "coffee.png").unlink(missing_ok=True)
        update(run)

    monkeypatch.setattr(Run, "update", losing)
    train(replace(plan, validation=(str(tmp_path / "a"), str(tmp_path / "b"))), None, said)
    assert [row[:2] for row in rows(plan, "validation.csv")[1:]] == [["3", "b"], ["6", "b"]]
    (line,) = (line for line in said.lines if line.startswith("step 6: a "))
    assert line == f"step 6: a is not scored: {tmp_path / 'a' / 'coffee.png'}: no such file"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are text here")
def test_names_that_are_no_text_end_no_run(plan: Recipe, tmp_path: Path) -> None:
    odd = replace(plan, output=str(tmp_path / "run\udce9"), validation=(str(tmp_path / "set\udce9"),))
    shutil.copytree(tmp_path / "pictures", odd.validation[0])
    train(replace(odd, steps=3, warmup=0), None, Report())
    before = (Path(odd.output) / "validation.csv").read_bytes()
    assert b"\n3,set\xe9," in before
    train(replace(odd, steps=3, warmup=0), None, Report())
    assert (Path(odd.output) / "validation.csv").read_bytes() == before
    assert (Path(odd.output) / "tiny-x2.safetensors").exists()


def test_divergence_keeps_the_last_good_state(plan: Recipe) -> None:
    train(replace(plan, steps=3, warmup=3, schedule="multistep"), None, Report())
    path = Path(plan.output) / "state.pt"
    values = torch.load(path)
    wild = replace(plan, lr=1e38, clip=None, warmup=3, schedule="multistep")
    torch.save({**values, "recipe": recipe.to_dict(wild)}, path)
    before = path.read_bytes()
    with pytest.raises(TrainingError, match=rf"by step \d: the last good state is step 3 in {path}; lower lr"):
        train(wild, None, Report())
    assert path.read_bytes() == before


def test_two_runs_do_not_share_a_folder(plan: Recipe) -> None:
    Path(plan.output).mkdir()
    with (
        locked(Path(plan.output) / ".lock"),
        pytest.raises(TrainingError, match=r"run: another run is training into this folder"),
    ):
        train(plan, 0.0, Report())
    train(plan, 0.0, Report())  # the file stays, the lock does not


@pytest.mark.parametrize(
    "change",
    [
        {"ribsr_state": torch.zeros(3)}, {"recipe": [1]}, {"recipe": {"lr": torch.zeros(3)}},
        {"recipe": {(1, 2): "\x1b"}}, {"optimizer": {"state": 1}},
        {"step": "9"}, {"model": {}}, {"model": {"a": 1}}, {"average": 3}, {"optimizer": {}},
    ],
)  # fmt: skip
def test_odd_states_are_refused(plan: Recipe, change: dict[str, Any]) -> None:
    train(plan, 0.0, Report())
    path = Path(plan.output) / "state.pt"
    torch.save({**torch.load(path, weights_only=True), **change}, path)
    with pytest.raises(TrainingError, match=r"state\.pt: "):
        train(plan, 0.0, Report())


def test_another_recipe_or_a_damaged_state_is_refused(plan: Recipe) -> None:
    train(replace(plan, steps=6), 0, Report())
    with pytest.raises(TrainingError, match=r"state\.pt: belongs to a run with batch 4, not 8; restore that"):
        train(replace(plan, batch=8), None, Report())
    path = Path(plan.output) / "state.pt"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"state\.pt: .*damaged.*remove it to start anew"):
        train(plan, None, Report())
    for content in ({"params": {}}, {"ribsr_state": 1}, {"ribsr_state": 1, "recipe": 3, "step": 1}):
        torch.save(content, path)
        with pytest.raises(TrainingError, match=r"state\.pt: not a training state"):
            train(plan, None, Report())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (None, r"odd: there is no such folder"),
        ("empty", r"odd: holds no pictures"),
        ("RGBA", r"z\.png: has an alpha channel"),
        ("small", r"z\.png: 12x30 is too small: SSIM needs 11x11 inside a border of 2 pixels"),
    ],
)
def test_what_would_end_the_first_validation_ends_the_run_before_its_first_step(
    plan: Recipe, tmp_path: Path, kind: str | None, message: str
) -> None:
    if kind is not None:
        (tmp_path / "odd").mkdir()
    if kind not in (None, "empty"):
        image = Image.new("RGB", (12, 30)) if kind == "small" else Image.new(kind, (40, 40))
        image.save(tmp_path / "odd" / "z.png")
    with pytest.raises(DataError, match=message):
        train(replace(plan, validation=(str(tmp_path / "pictures"), str(tmp_path / "odd"))), None, Report())
    assert not Path(plan.output).exists()


def test_all_that_would_end_a_run_is_said_at_once(plan: Recipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "set").mkdir()
    Image.new("RGBA", (40, 40)).save(tmp_path / "set" / "alpha.png")
    Image.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "set" / "deep.png")
    Image.new("L", (40, 40)).save(tmp_path / "set" / "gray.png")
    folders = (*plan.train, Folder(str(tmp_path / "empty"), str(tmp_path / "nowhere")))
    with pytest.raises(DataError) as caught:
        train(replace(plan, train=folders, validation=(str(tmp_path / "set"),)), None, Report())
    told = str(caught.value).split("; ")
    assert f"{tmp_path / 'empty'}: holds no pictures" in told
    assert f"{tmp_path / 'nowhere'}: there is no such folder" in told
    assert [line.split("/")[-1] for line in told if "/set/" in line] == [
        "alpha.png: has an alpha channel", "deep.png: has 16 bits per channel",
    ]  # fmt: skip
    with pytest.raises(DataError, match="the recipe's train lists no folders of pictures"):
        train(replace(plan, train=()), None, Report())
    assert not Path(plan.output).exists()


def test_the_umask_decides_who_may_read_a_state(plan: Recipe) -> None:
    before = os.umask(0o077)
    try:
        train(replace(plan, steps=2), None, Report())
    finally:
        os.umask(before)
    for name in ("state.pt", "tiny-x2.safetensors"):
        assert (Path(plan.output) / name).stat().st_mode & 0o777 == 0o600


def test_training_errors_are_ours_and_runtime_errors() -> None:
    assert issubclass(TrainingError, RibsrError)
    assert issubclass(TrainingError, RuntimeError)


def test_x3_starts_from_x2(plan: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = ribsr.build(TINY)
    ribsr.save(model, tmp_path / "x2.pt")
    tripled = initial_model(replace(plan, scale=3, init=str(tmp_path / "x2.pt"))).state_dict()
    for key, value in model.state_dict().items():
        if "up_conv" not in key:
            assert torch.equal(tripled[key], value), key
    weight, bias = model.upsampler.up_conv.weight, model.upsampler.up_conv.bias
    for output in range(3):
        for tap in (0, 4, 8):
            grid = weight[4 * output : 4 * output + 4, 2].flatten(1)[:, tap].view(1, 1, 2, 2)
            wanted = F.interpolate(grid, size=(3, 3), mode="bilinear").flatten()
            got = tripled["upsampler.up_conv.weight"][9 * output : 9 * output + 9, 2].flatten(1)[:, tap]
            torch.testing.assert_close(got, wanted)
    assert bias is not None
    middle = tripled["upsampler.up_conv.bias"].view(3, 3, 3)[:, 1, 1]
    torch.testing.assert_close(middle, bias.view(3, 4).mean(1))
    other = replace(TINY, windows=(8, 8))
    ribsr.save(ribsr.build(other), tmp_path / "other.pt")
    with pytest.raises(TrainingError, match=r"other\.pt: holds a tiny of other sizes than"):
        initial_model(replace(plan, init=str(tmp_path / "other.pt")))


def command(folder: Path, *arguments: str, processes: int = 0) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *launcher, "-m", "ribsr", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_two_processes_train_what_one_does(plan: Recipe, tmp_path: Path) -> None:
    import yaml

    shared = replace(plan, output=str(tmp_path / "shared"))
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(recipe.to_dict(shared)))
    result = command(tmp_path, "train", "shared.yaml", processes=2)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("step 6/6: loss") == 1
    assert result.stdout.count("wrote ") == 1
    train(plan, None, Report())
    one, two = state(plan), state(shared)
    for key, value in one["average"].items():
        torch.testing.assert_close(two["average"][key], value, rtol=0, atol=1e-5)
    losses = [[float(row[1]) for row in rows(of, "log.csv")[1:]] for of in (plan, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_command_reports_errors_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: esc-rib\ntrain: nowhere\ncompile: false\n")
    result = command(tmp_path, "train", "a.yaml")
    assert (result.returncode, result.stderr) == (1, "Error: nowhere: there is no such folder\n")
    assert "Traceback" in command(tmp_path, "train", "a.yaml", "-v").stderr


def test_help_is_instant() -> None:
    code = (
        "import sys\n"
        "from ribsr.__main__ import main\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit:\n"
        "    print({'numpy', 'PIL', 'torch', 'rich', 'yaml'} & set(sys.modules) or 'light')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "--stop-after" in result.stdout
    assert result.stdout.strip().endswith("light"), result.stdout + result.stderr


def test_the_averaged_model_is_scored_as_it_is_written(plan: Recipe, tmp_path: Path) -> None:
    from engines import open_engine
    from ribsr import benchmark
    from tools.evaluate import as_upscaler

    plan = replace(plan, steps=2, validation=(str(tmp_path / "pictures"),))
    train(plan, None, Report())
    with open_engine(Path(plan.output) / "tiny-x2.safetensors") as engine:
        scores = list(benchmark.score(as_upscaler(engine), sorted((tmp_path / "pictures").iterdir()), 2))
    (row,) = rows(plan, "validation.csv")[1:]
    assert float(row[2]) == pytest.approx(np.mean([score.psnr for score in scores]), abs=2e-3)
