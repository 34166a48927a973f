"""Files are whole or not there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ribsr.base import files
from ribsr.base.files import atomic, check_target, foreign, locked, sha256

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="nothing is protected from root")
def test_what_is_write_protected_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("kept")
    path.chmod(0o444)
    for write in (check_target, lambda path: atomic(path).__enter__()):
        with pytest.raises(PermissionError, match="a: is write-protected; name another file"):
            write(path)
    assert path.read_text() == "kept"
    assert [found.name for found in tmp_path.iterdir()] == ["a"]


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


@pytest.mark.skipif(os.name != "posix", reason="POSIX")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/proc/a.png", "no file can be written to this folder"),
        ("loop", "is a symbolic link that leads back to itself"),
        ("pipe", "is a device or a pipe; name a file"),
        ("n" * 256, "File name too long"),
        ("link", "there is no folder"),
        (".", "is a folder"),
    ],
)
def test_targets_that_cannot_be_written_are_known_beforehand(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "a")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match=message):
        check_target(tmp_path / name)
    check_target(tmp_path / "a.png")
    assert sorted(tmp_path.iterdir()) == before


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = (
        "import sys, time\nfrom ribsr.base.files import locked\n"
        "with locked(sys.argv[1]) as free:\n print(free, flush=True)\n time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    with locked(lock) as free:
        assert not free
    process.kill()
    process.communicate()
    with locked(lock) as free:
        assert free
    assert lock.read_bytes() == b""


WRITER = """
import sys, time
from pathlib import Path
from ribsr.base import files
from ribsr.base.files import atomic, temporary_folder
with atomic("a.bin") as temporary, temporary_folder(Path()) as folder:
    temporary.write_bytes(b"half")
    (folder / "inner").write_bytes(b"half")
    print(temporary, folder, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs flock")
def test_what_a_killed_process_leaves_goes_with_the_next_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: neither what a running process has, nor files that are not ours."""
    monkeypatch.chdir(tmp_path)
    names = (
        ".a.tmp",
        ".ribsr-notes",
        ".0123abcd.tmp",
        "ribsr-0123abcd.tmp",
        ".ribsr-notes.tmp",
        ".ribsr-0123abcd.tmp~",
    )
    others = [tmp_path / name for name in names]
    for path in others:
        path.touch()
    others.append(tmp_path / ".ribsr-mine.tmp")
    others[-1].mkdir()
    (tmp_path / ".ribsr-0123abcd.tmp").symlink_to(others[0])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout is not None
    left = [Path(name) for name in writer.stdout.readline().split()]
    assert all(path.exists() for path in left)
    for path in (*left, *others):
        os.utime(path, (0, 0))

    def written() -> bytes:
        files._looked_through.clear()  # as another process
        with atomic("a.bin") as temporary:
            temporary.write_bytes(b"whole")
        return Path("a.bin").read_bytes()

    assert written() == b"whole"
    assert all(path.exists() for path in left)
    writer.kill()
    writer.communicate()
    for path in left:
        os.utime(path)
    assert written() == b"whole"
    assert all(path.exists() for path in left)  # of just now
    for path in left:
        os.utime(path, (0, 0))
    assert written() == b"whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [path.name for path in others] + [".ribsr-0123abcd.tmp", "a.bin"]
    )


def test_a_folder_that_cannot_be_looked_through_is_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    folder.chmod(0o300)
    try:
        with atomic(folder / "b") as temporary:
            temporary.write_bytes(b"whole")
    finally:
        folder.chmod(0o700)
    assert [path.name for path in folder.iterdir()] == ["b"]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "is empty"),
        (bytes(2000), "begins with zeros only"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"\xef\xbb\xbf\n <!DOCTYPE html>", "is a web page"),
        (b"PK\3\4", None),
    ],
)
def test_what_is_no_model_is_told_by_its_beginning(tmp_path: Path, head: bytes, what: str | None) -> None:
    (tmp_path / "a").write_bytes(head)
    found = foreign(tmp_path / "a")
    assert found == what if what is None else found is not None and found.startswith(what)


def test_sha256(tmp_path: Path) -> None:
    content = b"x" * (3 << 20) + b"y"
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
