"""Recipes: the paper's figures, and files that say something else or nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ribsr import CONFIGS
from ribsr.__main__ import main
from ribsr.training import recipe
from ribsr.training.recipe import Folder, Recipe, RecipeError


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_the_papers_recipes() -> None:
    light, plus, x3 = recipe.paper("sst-light", 2), recipe.paper("sst-l+", 2), recipe.paper("sst-l+", 3)
    assert (light.batch, light.crop, light.steps, light.lr) == (64, 64, 500_000, 5e-4)
    assert (plus.batch, plus.crop, plus.betas, plus.ema) == (32, 96, (0.9, 0.9), 0.999)
    assert (x3.steps, x3.lr, x3.milestones) == (250_000, 2.5e-4, (125_000, 200_000, 225_000, 237_500, 245_000))
    assert {name: recipe.paper(name, 2).crop for name in CONFIGS if name != "esc-rib"} == {
        "sst-light": 64, "sst-light+": 96, "sst": 64, "sst+": 96, "sst-l": 64, "sst-l+": 96, "sst-xl+": 96,
    }  # fmt: skip


def test_learning_rates() -> None:
    light = recipe.paper("sst-light", 2)
    assert light.learning_rate(0) == pytest.approx(5e-4 / 20_000)
    assert light.learning_rate(19_999) == light.learning_rate(249_999) == 5e-4
    assert [light.learning_rate(step) for step in (250_000, 499_999)] == [2.5e-4, 5e-4 / 32]
    cosine = Recipe("sst-light", steps=30, warmup=10, lr=1.0, schedule="cosine")
    assert [cosine.learning_rate(step) for step in (4, 10, 20)] == pytest.approx([0.5, 1, 0.5])
    assert 0 < cosine.learning_rate(29) < 0.01


def test_a_file_says_what_differs(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: sst+\nscale: 3\nlr: 1e-4\nsteps: 1e5\nclip: 1\ntrain:\n  - a\n  - {high: b, low: c}\nvalidation: d\n",
    )
    read = recipe.read(path)
    assert (read.lr, read.steps, read.clip, read.crop) == (1e-4, 100_000, 1.0, 96)
    assert read.train == (Folder("a"), Folder("b", "c"))
    assert read.validation == ("d",)
    assert recipe.from_dict(recipe.to_dict(read), "again") == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: 1", "holds no recipe"),
        ("model: [", "not YAML"),
        ("model: sst-huge", "no model is called 'sst-huge'; choose one of sst-light"),
        ("model: none.json", "model none.json: No such file or directory; give a file, or one of sst-light"),
        ("model: sst\nscale: 5", "scale must be 2, 3 or 4"),
        ("model: sst\nlearning_rate: 1", "unknown field 'learning_rate'; there are batch"),
        ("model: sst\nsteps: 2.5", "steps must be a whole number, got 2.5"),
        ("model: sst\nlr: fast", "lr must be a number, got 'fast'"),
        ("model: sst\nlr: 0", "lr must be positive"),
        ("model: sst\nsteps: 10", "warmup must be 0 to steps"),
        ("model: sst\nschedule: linear", "schedule must be multistep or cosine"),
        ("model: sst\ncompile: 1", "compile must be true or false"),
        ("model: sst\ntrain: [{low: a}]", "train must list folders"),
        ("model: sst\ninit: 3", "init must be text"),
        ("model: sst\nbatch: 0", "batch must be at least 1"),
    ],
)
def test_nonsense_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        recipe.read(path)
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_file_that_is_read_back(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["recipe", "sst-l+", "--scale", "4"])
    assert recipe.read(write(tmp_path, result.stdout)) == recipe.paper("sst-l+", 4)
    result = CliRunner().invoke(main, ["recipe", "sst-huge"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no model is called 'sst-huge'")
