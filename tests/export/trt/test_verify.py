"""The check of a new plan's pictures."""

from __future__ import annotations

import numpy as np
import pytest

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


def test_verification_is_left_out_where_it_takes_long_or_is_not_wanted(gpu, here, monkeypatch):
    assert "not run, as asked" in invoke("--fp16", "--no-verify").output
    monkeypatch.setattr(verify, "SCORES", 10)
    assert "attention scores take long on a CPU; use --verify" in invoke("--fp16").output
    assert "checked against ONNX Runtime" in invoke("--fp16", "--verify").output


def test_check_pictures_are_within_the_profile():
    def sizes(*shapes: str) -> list[str]:
        return [str(size) for size in verify.check_sizes((*map(Size.parse, shapes),))]  # pyright: ignore

    assert sizes("64x64", "640x360", "1280x720") == ["192x192", "131x97"]
    assert sizes("640x360", "640x360", "640x360") == ["640x360"]
    assert sizes("8x8", "16x16", "64x100") == ["64x100", "64x97"]
