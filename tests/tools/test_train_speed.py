"""tools/train_speed.py: what can be known without training anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.train_speed import main


def test_a_folder_that_is_not_the_authors_code_is_refused_at_once(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}: not a checkout of github dslisleedh/SST (no sst/archs/sst_arch.py)\n"
