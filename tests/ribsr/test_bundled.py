"""Checkpoints that are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ribsr
from engines import open_engine
from ribsr import bundled
from tools._common import ModelName, model_name


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of bundled checkpoints with tiny-x2 in it; the working directory is another one."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.manual_seed(0)
    model = ribsr.build(ribsr.SSTConfig("tiny", 6, (2,), (4,), (4,), 1, 1.5, "direct"))
    ribsr.save(model, folder / "tiny-x2.safetensors")
    monkeypatch.setattr(bundled, "FOLDER", folder)
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_name_finds_its_checkpoint(shipped: Path) -> None:
    assert bundled.names() == ["tiny-x2"]
    assert bundled.find("tiny-x2") == shipped / "tiny-x2.safetensors"
    assert ribsr.load("tiny-x2").config.name == "tiny"
    assert model_name("tiny-x2@fp16") == ModelName(str(shipped / "tiny-x2.safetensors"), "fp16")
    assert model_name("tiny-x2.onnx") == ModelName("tiny-x2.onnx")
    with open_engine("tiny-x2") as engine:
        assert engine.describe().model == "tiny"
    with pytest.raises(ribsr.CheckpointError, match="tiny-x3: no such file; bundled are tiny-x2"):
        ribsr.load("tiny-x3")


def test_a_file_of_that_name_is_meant(shipped: Path) -> None:
    Path("tiny-x2").write_text("mine")
    assert bundled.find("tiny-x2") == Path("tiny-x2")


def test_it_is_exported_by_name(shipped: Path) -> None:
    pytest.importorskip("onnx")
    from click.testing import CliRunner

    from engines.metadata import read_stamp
    from export.onnx import main
    from ribsr.base.files import sha256

    result = CliRunner().invoke(main, ["--ckpt", "tiny-x2"])
    assert result.exit_code == 0, result.output
    assert read_stamp("tiny-x2.onnx").checkpoint_sha256 == sha256(shipped / "tiny-x2.safetensors")


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_bundled_models_beat_bicubic(scale: int) -> None:
    """On every sample photograph, none of which they were trained on; and what ships is no larger than it says."""
    from ribsr import benchmark
    from ribsr.base.settings import read_settings
    from tools.evaluate import as_upscaler

    name = f"sst-light-x{scale}"
    path = bundled.find(name)
    assert read_settings(path.with_suffix(".yaml"))["scale"] == scale
    assert path.stat().st_size < 4e6
    pictures = benchmark.pictures_in(Path(__file__).parents[2] / "engines" / "samples")
    with open_engine(name) as engine:
        assert (engine.describe().model, engine.describe().scale) == ("sst-light", scale)
        ours, bicubic = (
            list(benchmark.score(of, pictures, scale)) for of in (as_upscaler(engine), benchmark.bicubic(scale))
        )
    assert len(ours) == 3
    for a, b in zip(ours, bicubic, strict=True):
        assert a.psnr > b.psnr + 0.5, a.picture
        assert a.ssim > b.ssim, a.picture


def test_the_api_is_there_to_be_found() -> None:
    import ribsr

    assert set(ribsr.__all__) <= set(dir(ribsr))
