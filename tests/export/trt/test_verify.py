"""The check of a new plan's pictures."""

from __future__ import annotations

import re

import numpy as np
import pytest

from engines.compare import Difference, Proof, Rule
from export import ExportError
from export.trt import verify
from ribsr.base.sizes import Size
from tests.export.trt.played import failed, invoke


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (0.01, "on astronaut 192x192 PSNR 40.0 dB is below 50 dB, the least for fp16; nothing was written: try --bf16"),
        (np.nan, "on astronaut 192x192 442368 NaN or infinite values of 442368; nothing was written: try --bf16"),
    ],
)
def test_engine_that_computes_something_else_is_not_written(gpu, here, error, message):
    gpu.error = error
    line = failed(invoke("--fp16"), here)
    assert line.startswith("Error: the plan's pictures are not ONNX Runtime's: ")
    assert message in line


@pytest.mark.parametrize(
    ("precision", "nan", "message"),
    [
        ("fp32", 0, "on bad PSNR 30.0 dB is below 60 dB, the least for fp32; nothing was written: report it"),
        ("bf16", 0, "on bad PSNR 30.0 dB is below 32 dB, the least for bf16; nothing was written: report it"),
        ("fp16", 0, "on bad PSNR 30.0 dB is below 50 dB, the least for fp16; nothing was written: try --bf16"),
        ("bf16", 3, "on bad 3 NaN or infinite values of 10; nothing was written: try --bf16 (TensorRT 10 and later)"),
    ],
)
def test_each_picture_has_to_be_right(precision, nan, message):
    """Not only all of them together, of which a large one would hide a small one."""
    pictures = {"good": Difference(values=10**6), "bad": Difference(values=10, nan=nan, squared=0.001 * (10 - nan))}
    proof = Proof(pictures, Rule.least_psnr(precision))
    assert nan or proof.failure is None
    with pytest.raises(ExportError, match=re.escape(message)):
        verify.check(proof, precision)


def test_verification_is_left_out_where_it_takes_long_or_is_not_wanted(gpu, here, monkeypatch):
    assert "not run, as asked" in invoke("--fp16", "--no-verify").output
    monkeypatch.setattr(verify, "SCORES", 10)
    assert "attention scores take long on a CPU; use --verify" in invoke("--fp16").output
    assert "checked against ONNX Runtime" in invoke("--fp16", "--verify").output


def test_check_pictures_are_within_the_profile():
    def sizes(smallest: str, preferred: str, largest: str) -> list[str]:
        shapes = Size.parse(smallest), Size.parse(preferred), Size.parse(largest)
        return [str(size) for size in verify.check_sizes(shapes)]

    assert sizes("64x64", "640x360", "1280x720") == ["192x192", "131x97"]
    assert sizes("640x360", "640x360", "640x360") == ["640x360"]
    assert sizes("8x8", "16x16", "64x100") == ["64x100", "64x97"]
