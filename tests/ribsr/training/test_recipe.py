"""Recipes: the paper's figures, and files that say something else or nonsense."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ribsr import CONFIGS
from ribsr.__main__ import main
from ribsr.base.errors import RibsrError
from ribsr.base.installation import pip_install
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
        ("model: 5", "model must be text, got 5"),
        ("model:", "model must be text, got None"),
        ('model: sst\nscale: "2"', "scale must be a whole number, got '2'"),
        ("model: sst\nscale: 2.0", "scale must be a whole number, got 2.0"),
        ("model: sst\nscale:", "scale must be a whole number, got None"),
        ("model: sst\nscale: 0", "scale must be 2, 3 or 4, got 0"),
        ("model: sst\nseed: -1", "seed must not be negative, got -1"),
        ("model: sst\nweight_decay: -1", "weight_decay must not be negative, got -1"),
        ("model: sst\nmilestones: [5, -1]", "milestones must not be negative, got [5, -1]"),
        ("model: sst\nmilestones: [5, 2.5]", "milestones must be a list of whole numbers, got [5, 2.5]"),
        ("model: sst\nbetas: [0.9]", "betas must be a list of 2 numbers, got [0.9]"),
        ("model: sst\nbetas: [0.9, 0.9, 0.9]", "betas must be a list of 2 numbers"),
        ("model: sst\nbetas: [0.9, 1.5]", "betas must be 0 to below 1, got [0.9, 1.5]"),
        ("model: sst\nlr: true", "lr must be a number, got True"),
        ("model: sst\nlr: .nan", "lr must be a number, got nan"),
        ("model: sst\nlr: [1e-3]", "lr must be a number, got ['1e-3']"),
        ('model: sst\nlr: "0.1"', "lr must be a number, got '0.1'"),
        ("model: sst\nclip: none", "clip must be a number or null, got 'none'"),
        ("model: sst\nsteps: [5]", "steps must be a whole number, got [5]"),
        ("model: sst\nvalidation: 3", "validation must be a list of texts, got 3"),
        ("model: sst\nvalidation:", "validation must be a list of texts, got None"),
        ("model: sst\nvalidation: [a, 3]", "validation must be a list of texts, got ['a', 3]"),
        ("model: sst\noutput: [a]", "output must be text, got ['a']"),
        ("model: sst\ntrain: 3", "train must list folders"),
        ("model: sst\ntrain:", "train must list folders"),
        ("model: sst\ntrain: [{high: 3}]", "train must list folders"),
        ("model: sst\ntrain: [{high: a, low: [b]}]", "train must list folders"),
        ("model: sst\ntrain: [{high: a, 3: b}]", "train must list folders"),
        ("model: sst\n3: 4", "unknown field 3; there are"),
        ("model: sst\na: 2001-99-99", "not YAML"),
        ("model: sst\nseed: 1e30", "seed must be below 2**63, got 1000000"),
        ("model: sst\noutput: ''", "output must name a path, got an empty text"),
        ("model: sst\ntrain: [a, '']", "train must name a path"),
        ("model: sst\ntrain: [{high: a, low: ''}]", "train must name a path"),
        ("model: sst\nvalidation: ['']", "validation must name a path"),
        ("model: sst\ninit: ''", "init must name a path"),
        (
            "model: sst\nlr: fast\nsteps: 2.5\nspeed: 9",
            "lr must be a number, got 'fast'; steps must be a whole number, got 2.5; unknown field 'speed'; there are",
        ),
        (
            "model: sst\nbatch: 0\nclip: -1\nema: 1",
            "batch must be at least 1, got 0; ema must be 0 to below 1, got 1.0; clip must be positive, or null",
        ),
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


def test_recipe_errors_are_ours_and_value_errors() -> None:
    assert issubclass(RecipeError, RibsrError)
    assert issubclass(RecipeError, ValueError)


def test_subcommands_show_tracebacks_when_asked() -> None:
    for flags, shown in (([], False), (["-v"], True)):
        result = CliRunner().invoke(main, ["recipe", "sst-huge", *flags])
        assert result.exit_code == 1
        assert isinstance(result.exception, RecipeError) is shown


@pytest.mark.parametrize(("package", "arguments"), [("torch", ["train"]), ("yaml", ["recipe", "sst"])])
def test_what_is_not_installed_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, arguments: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "ribsr.training.loop", raising=False)
    path = write(tmp_path, "model: sst")
    result = CliRunner().invoke(main, [*arguments, *([str(path)] if arguments == ["train"] else [])])
    assert result.exit_code == 1
    brings = f"{pip_install('train')} or {pip_install('export')}"
    assert result.stderr == f"Error: {package} is not installed: {brings}\n"
