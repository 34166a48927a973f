"""A recipe that trains a tiny network within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ribsr import configs
from ribsr.configs import SSTConfig
from ribsr.training.recipe import Folder, Recipe

SAMPLES = Path(__file__).resolve().parents[3] / "engines" / "samples"

TINY = SSTConfig("tiny", 6, (2, 2), (4, 8), (4, 4), 1, 1.5, "direct")


@pytest.fixture
def plan(tmp_path: Path) -> Recipe:
    """Six steps of the tiny network on two photographs."""
    (tmp_path / "pictures").mkdir()
    for name in ("chelsea", "coffee"):
        Image.open(SAMPLES / f"{name}.png").crop((40, 40, 120, 110)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "tiny.json").write_text(json.dumps(configs.to_dict(TINY)))
    return Recipe(
        model=str(tmp_path / "tiny.json"),
        output=str(tmp_path / "run"),
        train=(Folder(str(tmp_path / "pictures")),),
        steps=6,
        batch=4,
        crop=8,
        lr=1e-2,
        warmup=2,
        schedule="cosine",
        clip=1.0,
        ema=0.9,
        precision="fp32",
        compile=False,
        log_every=2,
        save_every=3,
        validate_every=3,
    )
