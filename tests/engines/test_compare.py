"""The one proof: what a difference holds, what the rules allow, and what an engine is compared with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import engines.compare
from engines import Description, Engine, EngineError, open_engine
from engines.base import LayerTime
from engines.compare import CannotJudge, Difference, Rule, RunningReference, prove
from tests.engines import fakes

X = fakes.picture(4, 5)
TOLD = Description("tiny", 1, ((4, 4),), "fp32", "mha", "0.1.0", fakes.SHA, "a.onnx", "fake", "1", "cpu")


class Off(Engine):
    """Gives its input plus `off`, of a precision and for a batch."""

    def __init__(self, off: float | np.ndarray, precision: str = "fp32", batch: int | None = None):
        self._off, self._told = np.asarray(off, np.float32), replace(TOLD, precision=precision, batch=batch)

    def describe(self) -> Description:
        return self._told

    def run(self, x: np.ndarray) -> np.ndarray:
        return x + self._off

    def profile(self, x: np.ndarray, runs: int = 5) -> list[LayerTime]:
        return []

    def close(self) -> None:
        pass


class Exact:
    """A reference that gives its input. halves: how far off PyTorch is in each half precision."""

    def __init__(self, **halves: float):
        self._halves = halves

    def output(self, name: str, x: np.ndarray) -> np.ndarray:
        return x

    def half_output(self, precision: str, name: str, x: np.ndarray) -> np.ndarray | None:
        return x + np.float32(self._halves[precision]) if precision in self._halves else None


def test_a_difference_is_what_its_names_say() -> None:
    reference = np.zeros((1, 3, 1, 4), np.float32)
    output = reference.copy()
    output[0, 0, 0, 0] = 0.5
    output[0, :, 0, 1] = -0.25  # clipped to black when written: no pixel changes
    output[0, 1, 0, 2] = np.nan
    found = Difference.between(reference, output)
    assert found.nan == 1
    assert found.max_error == 0.5
    assert found.mean_error == pytest.approx((0.5 + 3 * 0.25) / 11)
    assert found.rmse == pytest.approx(((0.25 + 3 * 0.0625) / 11) ** 0.5)
    assert found.psnr == pytest.approx(10 * np.log10(11 / (0.25 + 3 * 0.0625)))
    assert found.share_off == 2 / 4, "the one that is off and the one that is NaN"
    assert Difference.between(reference, reference).to_json()["psnr"] is None
    json.dumps(found.to_json(), allow_nan=False)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 99)), min_size=1, max_size=4))
def test_the_sum_of_differences_is_that_of_all_pictures(parts: Sequence[tuple[int, int]]) -> None:
    pairs = [(fakes.picture(h, 3, seed), fakes.picture(h, 3, seed + 1)) for h, seed in parts]
    total = sum((Difference.between(*pair) for pair in pairs), Difference())
    ones, others = (np.concatenate(arrays, axis=2) for arrays in zip(*pairs, strict=True))
    assert {**vars(total)} == pytest.approx(vars(Difference.between(ones, others)))


@pytest.mark.parametrize(
    ("rule", "found", "failure"),
    [
        (Rule.exact(), Difference(9, max_error=1e-4), None),
        (Rule.exact(), Difference(9, max_error=2e-4), "largest error 0.0002 is above 0.0001"),
        (Rule.exact(1e9), Difference(9, nan=2), "2 NaN or infinite values of 9"),
        (Rule.exact(1e9), Difference(), "nothing was compared"),
        (Rule.half(Difference(4, squared=4.0), "fp16"), Difference(4, squared=16.0), None),
        (
            Rule.half(Difference(4, squared=4.0), "fp16"),
            Difference(4, squared=17.0),
            "rmse 2.06 is above 2 × 1, PyTorch's in fp16",
        ),
        (Rule.least_psnr("fp16"), Difference(4, squared=4e-5), None),
        (Rule.least_psnr("fp16"), Difference(4, squared=5e-5), "PSNR 49.0 dB is below 50 dB"),
        (Rule.least_psnr("bf16"), Difference(4), None),
    ],
)
def test_rules(rule: Rule, found: Difference, failure: str | None) -> None:
    assert rule.broken_by(found) == failure


@pytest.mark.parametrize(
    ("engine", "passes"),
    [
        (Off(5e-5), True),
        (Off(3e-4), False),
        (Off(np.nan), False),
        (Off(np.inf), False),
        (Off(0.019, "fp16"), True),
        (Off(0.021, "fp16"), False),
        (Off(np.nan, "fp16"), False),
        (Off(0.05, "bf16"), True),
        (Off(8, "bf16"), False),
    ],
)
def test_the_rule_is_that_of_the_precision(engine: Engine, passes: bool) -> None:
    proof = prove(engine, Exact(fp16=0.01, bf16=0.03), [("one", X), ("two", X[:, :, :2])])
    assert (proof.failure is None) is passes
    assert list(proof.pictures) == ["one", "two"]
    assert proof.total.values == X.size + X[:, :, :2].size


def test_another_rule_and_another_factor_can_be_asked_for() -> None:
    pictures = [("one", X)]
    assert prove(Off(0.5, "fp16"), Exact(), pictures, Rule.exact(0.6)).failure is None
    assert prove(Off(0.015, "fp16"), Exact(fp16=0.01), pictures, half_factor=1).failure is not None


def test_every_picture_of_a_batch_is_compared() -> None:
    off = np.zeros((2, 1, 1, 1))
    off[1] = 0.1
    assert prove(Off(off, batch=2), Exact(), [("one", X)]).total.max_error == pytest.approx(0.1)


def test_one_picture_that_is_wrong_is_enough() -> None:
    class Late(Off):
        def run(self, x: np.ndarray) -> np.ndarray:
            return x + np.float32(0.1 if len(x[0, 0]) == 2 else 0)

    assert prove(Late(0), Exact(), [("one", X), ("two", X[:, :, :2])]).failure is not None


def test_where_pytorch_overflows_its_bf16_is_the_yardstick() -> None:
    proof = prove(Off(0.05, "fp16"), Exact(fp16=np.inf, bf16=0.03), [("one", X)])
    assert proof.failure is None
    assert proof.notes == [f"PyTorch itself gives {X.size} NaN or infinite values in fp16"]
    assert prove(Off(8, "fp16"), Exact(fp16=np.inf, bf16=0.03), [("one", X)]).failure is not None
    with pytest.raises(CannotJudge, match="PyTorch overflows in half precision"):
        prove(Off(0.05, "fp16"), Exact(fp16=np.inf, bf16=np.nan), [("one", X)])
    with pytest.raises(CannotJudge, match="has no fp16 outputs of PyTorch"):
        prove(Off(0.05, "fp16"), Exact(), [("one", X)])


def test_a_checkpoint_runs_once_for_each_precision_and_picture(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str | None, str | None]] = []

    def spy(path: Path, *, precision: str | None, attention: str | None = None, device: str) -> Engine:
        opened.append((precision, attention))
        engine = open_engine(path, precision=precision, attention=attention, device=device)
        return counted(engine)

    def counted(engine: Engine) -> Engine:
        run = engine.run
        monkeypatch.setattr(engine, "run", lambda x: ran.append(engine.describe().precision) or run(x))
        return engine

    ran: list[str] = []
    monkeypatch.setattr(engines.compare, "open_engine", spy)
    with RunningReference(checkpoint, device="cpu") as reference:
        for _ in range(2):
            reference.output("one", X)
            reference.half_output("fp16", "one", X)
    assert opened == [(None, None), ("fp16", "sdpa")], "the yardstick is not our own kernel"
    assert ran == ["fp32", "fp16"]
    with RunningReference(checkpoint, attention="reference", device="cpu") as reference:
        reference.half_output("bf16", "one", X)
    assert opened[2:] == [(None, "reference"), ("bf16", "reference")], "unless it is asked for"


def test_a_reference_that_overflows_is_none(tmp_path: Path) -> None:
    path = fakes.write_onnx(tmp_path / "big.onnx", fakes.poisoned(fakes.weights()), precision="fp16")
    with RunningReference(path, device="cpu") as reference:
        assert reference.half_output("fp16", "one", X) is None
        with pytest.raises(EngineError, match=r"big\.onnx: the reference itself gives NaN or infinite values on one"):
            reference.output("one", X)
    with pytest.raises(EngineError, match=r"big\.onnx: is in fp16, not in bf16; export it in that precision"):
        RunningReference(path, "bf16", device="cpu")
