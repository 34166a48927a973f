"""Files are whole or not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ribsr.base.files import atomic, sha256


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path, "renaming works within one file system only"
        temporary.write_bytes(b"half")
        assert not path.exists()
    assert path.read_bytes() == b"half"


def test_an_interrupted_write_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"), atomic(tmp_path / "nowhere" / "a"):
        pass


def test_sha256(tmp_path: Path) -> None:
    content = b"x" * (3 << 20) + b"y"
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
