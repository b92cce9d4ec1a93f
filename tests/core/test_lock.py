"""A lock on a folder: one holder, who is told, and nobody when the holder is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import lock
from core.errors import BadRequest

HOLD = """
import sys
from pathlib import Path
from core import lock
descriptor = lock.take(Path(sys.argv[1]))
lock.sign(descriptor, lock.me())
print(descriptor, flush=True)
input()
"""


def test_one_holder_at_a_time_who_is_named(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.lock"
    with lock.held(file, "filled", "wait for it"):
        with (
            pytest.raises(BadRequest, match=rf"new' is being filled by process {os.getpid()} on .* since .*: wait for it$"),
            lock.held(file, "filled", "wait for it"),
        ):
            pass
        owner = lock.holder(file)
        assert owner is not None
        assert owner["process"] == os.getpid()
    assert lock.holder(file) is None
    with lock.held(file, "filled", "wait for it"):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    command = [sys.executable, "-c", HOLD, str(file)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        owner = lock.holder(file)
        assert owner is not None
        assert owner["process"] == other.pid
        assert lock.take(file) is None
        other.kill()
        other.wait()
    assert lock.holder(file) is None
    descriptor = lock.take(file)
    assert descriptor is not None
    os.close(descriptor)


def test_a_file_that_says_nothing_still_locks(tmp_path: Path) -> None:
    file = tmp_path / "a.lock"
    descriptor = lock.take(file)
    assert descriptor is not None
    os.pwrite(descriptor, b"[1", 0)
    assert lock.holder(file) == {}
    with pytest.raises(BadRequest, match="by another process: wait"), lock.held(file, "filled", "wait"):
        pass
    os.close(descriptor)


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file" / "a.lock"
    file.parent.write_text("")
    with pytest.raises(BadRequest, match=r"cannot be written to .*: choose another folder"), lock.held(file, "filled", "wait"):
        pass
    assert lock.holder(file) is None
