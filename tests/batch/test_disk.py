"""A disk that fills in the middle of a batch: a real file system of 20 MB."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import PIL.Image
import pytest

from batch.runner import Settings, run_batch
from batch.store import Folder, open_store, pictures
from core.errors import DiskFull
from core.request import RenderRequest
from tests.batch.fake import OpenFake
from tests.batch.test_runner import files, jobs_of, run, silent


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 20 MB; where this process may not mount one, inside a mount namespace of its own it may not either: then it is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=False).returncode == 0
    if not mounted:
        pytest.skip("only root can mount a file system of 20 MB")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_with_nothing_torn_and_the_next_goes_on(small_disk: Path) -> None:
    """Pictures of noise do not compress: 60 of 384 × 384 are 26 MB."""
    jobs = jobs_of([RenderRequest(prompt="noise", seed=i, width=384, height=384) for i in range(60)])
    with pytest.raises(DiskFull, match="free some space"):
        run_batch(jobs, open_store(small_disk), Settings(open_drawer=OpenFake()), silent)
    there = files(small_disk)
    assert 20 < len(there) < 60
    for name in there:
        PIL.Image.open(small_disk / name).load()
    assert not list(small_disk.glob(".limn-*"))

    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    tally = run(small_disk, jobs)
    assert (tally.there, tally.left) == (len(there), 0)
    after = files(small_disk)
    assert len(after) == 60
    assert {name: after[name] for name in there} == there, "what was there has not changed"


def test_full_before_anything_is_drawn(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(20 * 2**20 - 4096 * 3))
    with pytest.raises(DiskFull):
        run(small_disk, jobs_of([RenderRequest(seed=i, width=384, height=384) for i in range(3)]))
    assert pictures(Folder(small_disk).names()) == set()
