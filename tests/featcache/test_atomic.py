from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import pytest

from featcache.atomic import TEMPORARY_PREFIX, WriteError, new_folder, new_text, write_bytes, write_text

WAY_OUT = "free some space or name another place, then run the same command again: what was finished is kept"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=64k", "cxr-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk; the limit on file sizes below stands for it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)  # noqa: S607 - wherever the system has it


def message_of(path: Path, data: bytes) -> str:
    with pytest.raises(WriteError) as caught:
        write_bytes(path, data)
    return str(caught.value)


def fill(path: Path, files: dict[str, bytes], then: Callable[[], None] = lambda: None) -> None:
    """Make a folder of some files, and do one thing more before its block ends."""
    with new_folder(path) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        then()


def fill_text(path: Path, then: Callable[[IO[str]], object]) -> None:
    """Begin a text file, and do one thing more before its block ends."""
    with new_text(path) as file:
        file.write("begun")
        then(file)


def write_often(file: IO[str], text: str) -> None:
    for _ in range(1000):
        file.write(text)


# --- files


def test_the_whole_content_is_written_and_no_temporary_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"
    write_bytes(path, memoryview(b"first"))
    assert path.read_bytes() == b"first"
    write_text(path, "zweites – ü\n")
    assert path.read_bytes() == "zweites – ü\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_text_of_any_length_is_whole_or_absent_and_a_full_disk_is_told(small_disk: Path) -> None:
    path = small_disk / "answers.csv"
    with new_text(path) as file:
        file.write("before\n")
    for length in (100, 10_000):
        with pytest.raises(WriteError, match=r"cannot write .*answers.csv: No space left on device"):
            fill_text(path, partial(write_often, text="x" * length))
    assert path.read_text() == "before\n"
    assert list(small_disk.iterdir()) == [path]


def test_an_error_of_something_else_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        fill_text(tmp_path / "answers.csv", lambda _: (tmp_path / "elsewhere").read_bytes())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WriteError, match="cannot write"), new_text(Path("/dev/null/answers.csv")):
        pytest.fail("there is no such folder")


def test_a_full_disk_leaves_nothing_behind_and_says_so(small_disk: Path) -> None:
    path = small_disk / "store" / "part.h5"
    message = message_of(path, bytes(3 * 2**20))
    assert message == f"cannot write {path} (3.0 MiB): No space left on device; {WAY_OUT}"
    assert list(path.parent.iterdir()) == []
    write_bytes(path, b"fits")
    assert path.read_bytes() == b"fits"


def test_a_full_disk_leaves_the_old_file_as_it_was(small_disk: Path) -> None:
    path = small_disk / "features.h5"
    write_bytes(path, b"old" * 1000)
    assert "No space left on device" in message_of(path, bytes(2**20))
    assert path.read_bytes() == b"old" * 1000
    assert list(small_disk.iterdir()) == [path]


def test_a_full_disk_leaves_no_part_of_a_folder(small_disk: Path) -> None:
    run = small_disk / "runs" / "1"
    with pytest.raises(WriteError) as caught:
        fill(run, {"run.json": b"{}", "weights": bytes(2**20)})
    assert str(caught.value) == f"cannot write {run}: No space left on device; {WAY_OUT}"
    assert list(run.parent.iterdir()) == []


LIMITED = """
import resource, sys
from pathlib import Path
from featcache.atomic import WriteError, new_folder, write_bytes

resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
folder = Path(sys.argv[1])
write_bytes(folder / "small", bytes(4096))
try:
    write_bytes(folder / "small", bytes(4097))
except WriteError as error:
    print(error)
try:
    with new_folder(folder / "run") as new:
        (new / "large").write_bytes(bytes(5000))
except WriteError as error:
    print(error)
"""


def test_a_file_that_may_not_grow_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    """The same as on a full disk, for those who may mount none."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"cannot write {tmp_path / 'small'} (0.0 MiB): File too large; {WAY_OUT}",
        f"cannot write {tmp_path / 'run'}: File too large; {WAY_OUT}",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert (tmp_path / "small").read_bytes() == bytes(4096)


def test_a_folder_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write to every folder")
    message = message_of(tmp_path / "file", b"data")
    tmp_path.chmod(0o700)
    assert message == f"cannot write {tmp_path / 'file'} (0.0 MiB): Permission denied; {WAY_OUT}"


def test_a_file_where_a_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert "Not a directory" in message_of(tmp_path / "cache" / "deeper" / "part.h5", b"data")
    assert "File exists" in message_of(tmp_path / "cache" / "part.h5", b"data")
    assert (tmp_path / "cache").read_text() == "a file"


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    assert "Is a directory" in message_of(tmp_path / "place", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
from featcache import atomic

def interrupted(descriptor):
    raise KeyboardInterrupt

os.fsync = interrupted
try:
    atomic.write_bytes(Path(sys.argv[1], "file"), b"new")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupt_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    program = [sys.executable, "-c", INTERRUPTED, str(tmp_path)]
    assert subprocess.run(program, capture_output=True, text=True, check=True).stdout == "interrupted\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


# --- folders


def test_a_new_folder_appears_when_its_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "1"
    with new_folder(path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("text")
        assert folder.parent == path.parent
        assert folder.name.startswith(TEMPORARY_PREFIX)
        assert not path.exists()
    assert (path / "deep" / "file").read_text() == "text"
    assert list(path.parent.iterdir()) == [path]


def test_an_error_in_the_block_leaves_no_folder_and_is_passed_on(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fill(tmp_path / "run", {"file": b"text"}, fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("held", [True, False])
def test_a_folder_that_exists_is_kept_and_told_before_any_work(tmp_path: Path, *, held: bool) -> None:
    path = tmp_path / "run"
    path.mkdir()
    if held:
        (path / "precious").write_text("kept")
    worked: list[bool] = []
    with pytest.raises(WriteError) as caught:
        fill(path, {}, lambda: worked.append(True))
    assert not worked
    assert str(caught.value) == f"cannot write {path}: File exists; name a place that is free and may be written to"
    assert list(tmp_path.iterdir()) == [path]
    assert [file.name for file in path.iterdir()] == ["precious"] * held


def test_a_folder_that_another_process_makes_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def meanwhile() -> None:
        path.mkdir()
        (path / "file").write_text("theirs")

    with pytest.raises(WriteError, match="Directory not empty"):
        fill(path, {"file": b"mine"}, meanwhile)
    assert (path / "file").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]
