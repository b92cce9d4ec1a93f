"""Published files under kill -9, on a full disk, and beside other writers."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from core.errors import BadRequest, DiskFull
from core.files import output_folder, output_name, publish, publish_folder, sha256_file, sweep_temps

ROOT = Path(__file__).parents[2]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run_python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE)


def test_publish_writes_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    publish(path, b"old")
    publish(path, b"new")
    assert path.read_bytes() == b"new"
    assert names(path.parent) == {"a.bin"}


def test_published_files_have_ordinary_permissions(tmp_path: Path) -> None:
    publish(tmp_path / "a.bin", b"data")
    (tmp_path / "plain").write_bytes(b"data")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_places_that_cannot_be_written_to_are_a_bad_request(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file" / "a.png", tmp_path, Path("/proc/nowhere/a.png"), tmp_path / ("x" * 300)):
        with pytest.raises(BadRequest, match=r"cannot write .*; choose another folder") as caught:
            publish(path, b"data")
        assert "\n" not in str(caught.value)
    assert names(tmp_path) == {"file"}


WRITE_FOREVER = """
import sys, itertools
from pathlib import Path
from core.files import publish
print("ready", flush=True)
for number in itertools.count():
    publish(Path(sys.argv[1]) / f"{number % 3}.bin", bytes([number % 256]) * 3_000_000)
"""


def test_a_folder_for_results_is_made_or_refused(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "new" / "one").is_dir()
    assert output_folder(tmp_path / "new" / "one").is_dir()
    (tmp_path / "file").write_text("")
    for wrong in ("file", "file/below"):
        with pytest.raises(BadRequest, match=r"cannot write .*; choose another folder"):
            output_folder(tmp_path / wrong)


def test_twenty_kills_leave_no_damaged_file_and_sweeping_removes_the_rest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    temps_seen = 0
    for _ in range(20):
        writer = run_python(WRITE_FOREVER, tmp_path)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.05))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        whole = [path for path in tmp_path.iterdir() if path.suffix == ".bin"]
        for path in whole:
            data = path.read_bytes()
            assert len(data) == 3_000_000
            assert data == data[:1] * len(data)
        temps = len(names(tmp_path)) - len(whole)
        temps_seen += temps
        assert sweep_temps(tmp_path) == temps
        assert names(tmp_path) == {path.name for path in whole}
    assert temps_seen > 0  # otherwise no kill hit a write, and nothing was tested


HOLD_OPEN = """
import sys, time
from pathlib import Path
from core.files import publish_folder

def slowly(folder):
    (folder / "weights.bin").write_bytes(b"w" * 1000)
    print("writing", flush=True)
    sys.stdin.readline()

publish_folder(Path(sys.argv[1]) / "step-1", slowly)
"""


def test_sweeping_spares_what_a_living_process_is_writing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_OPEN, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert sweep_temps(tmp_path) == 0
        writer.communicate(b"\n")
        assert writer.returncode == 0
    assert names(tmp_path) == {"step-1"}

    with subprocess.Popen([*command[:3], str(tmp_path / "again")], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    assert sweep_temps(tmp_path / "again") == 1
    assert names(tmp_path / "again") == set()
    assert sweep_temps(tmp_path / "absent") == 0


def test_publish_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.bin").write_bytes(b"a")

    def fail(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish_folder(tmp_path / "model", fail)
    assert names(tmp_path) == set()
    publish_folder(tmp_path / "model", write)
    assert (tmp_path / "model" / "inner" / "a.bin").read_bytes() == b"a"
    assert names(tmp_path) == {"model"}


def test_publish_folder_never_overwrites(tmp_path: Path) -> None:
    publish_folder(tmp_path / "model", lambda folder: publish(folder / "a", b"first"))
    for place in (tmp_path / "model", tmp_path / "model" / "a"):
        with pytest.raises(BadRequest, match="exists already and is never overwritten"):
            publish_folder(place, lambda folder: publish(folder / "a", b"second"))
    assert (tmp_path / "model" / "a").read_bytes() == b"first"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk; the limit on file sizes below tests the same code")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_old_files_as_they_were(small_disk: Path) -> None:
    old = np.random.default_rng(0).bytes(1 << 20)
    publish(small_disk / "a.bin", old)
    with pytest.raises(DiskFull, match=r"no room to write '.*a\.bin' \(6\.0 MiB\): 3\.0 MiB are free in '.*disk'; free some space"):
        publish(small_disk / "a.bin", bytes(6 << 20))
    assert (small_disk / "a.bin").read_bytes() == old
    assert names(small_disk) == {"a.bin"}


def test_a_full_disk_publishes_no_folder_whoever_reports_it(small_disk: Path) -> None:
    weights = {"weight": np.zeros(6 << 20, np.uint8)}

    def python(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(weights["weight"].tobytes())

    def rust(folder: Path) -> None:
        safetensors.numpy.save_file(weights, folder / "weights.safetensors")

    for writer in (python, rust):
        with pytest.raises(DiskFull, match="no room to write"):
            publish_folder(small_disk / "model", writer)
        assert names(small_disk) == set()


def test_a_limit_on_file_sizes_is_a_full_disk_too(tmp_path: Path) -> None:
    publish(tmp_path / "a.bin", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(DiskFull, match=r"\(2\.0 MiB\)"):
            publish(tmp_path / "a.bin", bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


def test_sha256_is_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sha256_file(path) == known
    status = path.stat()
    path.write_bytes(b"xyz")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert sha256_file(path) == known  # same size and time: it was not read again
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert sha256_file(path) != known
    with pytest.raises(OSError, match="No such file"):
        sha256_file(tmp_path / "absent")


def test_output_names_hold_no_user_text() -> None:
    assert output_name("0123456789abcdef" * 4, 7) == "limn-0123456789ab-7.png"
    for key, seed, suffix in (("../../etc/passwd", 7, ".png"), ("a" * 64, 7, "/../x"), ("a" * 64, -1, ".png"), ("a" * 11, 7, ".png")):
        with pytest.raises(ValueError, match="an output name is made of"):
            output_name(key, seed, suffix)
