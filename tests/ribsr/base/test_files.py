"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
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


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("existing", [None, 0o600, 0o664])
def test_permissions_are_those_of_a_file_opened_for_writing(tmp_path: Path, umask: int, existing: int | None) -> None:
    opened, written = tmp_path / "opened", tmp_path / "written"
    for path in (opened, written) if existing else ():
        path.touch()
        path.chmod(existing or 0)
    opened.write_bytes(b"new")
    with atomic(written) as temporary:
        temporary.write_bytes(b"new")
    assert oct(mode(written)) == oct(mode(opened))


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    with atomic(path) as temporary:
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_written_through(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to(target)
    with atomic(link) as temporary:
        assert temporary.parent == target.parent
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_the_missing_folder_of_a_links_target_is_named(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nodir" / "target")
    with pytest.raises(FileNotFoundError, match="there is no folder .*nodir$"), atomic(tmp_path / "link"):
        pass


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"), atomic(tmp_path / "nowhere" / "a"):
        pass


def test_sha256(tmp_path: Path) -> None:
    content = b"x" * (3 << 20) + b"y"
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
