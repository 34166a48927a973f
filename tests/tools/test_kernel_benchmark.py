"""tools/kernel_benchmark.py: what can be known without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from plugins.operators import CYCLIC_WINDOW_ATTENTION, OPERATORS
from tools import kernel_benchmark
from tools.kernel_benchmark import LAYERS, Calls, main, measure


def test_every_operator_has_a_layer() -> None:
    assert {layer.operator.name for layer in LAYERS} == {operator.name for operator in OPERATORS}


def played(monkeypatch: pytest.MonkeyPatch, *rounds: list[float]) -> list[tuple[Path, Calls]]:
    """Puts figures in the place of `in_turn`; returns what it was asked to time."""
    asked: list[tuple[Path, Calls]] = []

    def in_turn(alternatives: list[tuple[Path, Calls]], repeats: int) -> list[list[float]]:
        asked.extend(alternatives)
        return list(rounds)

    monkeypatch.setattr(kernel_benchmark, "in_turn", in_turn)
    return asked


def test_builds_are_timed_beside_the_faster_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    base, variant = Path("base.so"), Path("variant.so")
    asked = played(monkeypatch, [2.0, 4.0, 2.0], [1.0, 1.0, 1.0], [9.0, 9.0, 9.0], [4.0, 4.0, 6.0])
    (layer, *_) = (layer for layer in LAYERS if layer.operator is CYCLIC_WINDOW_ATTENTION)
    ours, narrow, padded = ([lambda: None] for _ in range(3))
    (line, first), (_, second) = measure(layer, [base, variant], ours, [narrow, padded], 3)
    assert asked == [(base, ours), (variant, ours), (base, narrow), (base, padded)]
    assert (first["build"], first["ours_ms"], first["cudnn_ms"], first["ratio"]) == ("base.so", 2.0, 4.0, 2.0)
    assert (second["build"], second["ours_ms"], second["ratio"]) == ("variant.so", 1.0, 4.0)
    assert (first["window"], first["rank"], first["height"], first["width"]) == (96, 32, 360, 640)
    assert line.endswith("2.000x")
    assert "e12 scores/s" in line


def test_our_kernels_may_be_timed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    played(monkeypatch, [0.5, 0.4, 0.6])
    (layer, *_) = (layer for layer in LAYERS if layer.operator is not CYCLIC_WINDOW_ATTENTION)
    ((line, row),) = measure(layer, [Path("base.so")], [lambda: None], [], 3)
    assert row["ours_ms"] == 0.5
    assert "ratio" not in row
    assert line.split()[-1] == "floors"
    assert row["floor_ms"] == pytest.approx(2 * 2 * 48 * 360 * 640 / 3e9)


def test_builds_are_compared_by_their_attention(tmp_path: Path) -> None:
    build = tmp_path / "base.so"
    build.touch()
    result = CliRunner().invoke(main, [str(build), "--only", "layer_norm"])
    assert result.exit_code == 2
    assert "builds are compared by attention alone" in result.stderr
