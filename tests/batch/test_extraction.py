"""Maps ahead of the drawing, though a process that makes them dies and a file comes late."""

import contextlib
import os
import signal
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from batch.extraction import Extraction
from controls.prepare import load_map
from core.errors import BadImage
from core.request import ControlUnit, RenderRequest


def unit(path: Path, low: int = 100) -> ControlUnit:
    return ControlUnit(kind="canny", image=path, params={"low": low})


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_process_that_dies_is_replaced(photo: Path) -> None:
    extraction = Extraction(1)
    try:
        extraction(unit(photo), 64, 64)
        pool = extraction._executor
        assert isinstance(pool, ProcessPoolExecutor)
        for process in list((pool._processes or {}).values()):
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        with contextlib.suppress(BrokenExecutor):
            while True:  # until the pool has seen it
                pool.submit(os.getpid).result()
        extraction.announce(RenderRequest(width=64, height=64, controls=(unit(photo, 50),)), "toyland")
        found = extraction(unit(photo, 50), 64, 64)
        assert np.array_equal(found.map_HWC, load_map(unit(photo, 50), 64, 64).map_HWC)
    finally:
        extraction.close()


def test_a_failure_is_not_kept_for_the_next_try(photo: Path) -> None:
    late = photo.with_name("late.png")
    extraction = Extraction()
    extraction.announce(RenderRequest(width=64, height=64, controls=(unit(late),)), "toyland")
    with pytest.raises(BadImage):
        extraction(unit(late), 64, 64)
    late.write_bytes(photo.read_bytes())
    assert np.array_equal(extraction(unit(late), 64, 64).map_HWC, load_map(unit(photo), 64, 64).map_HWC)
    extraction.close()
