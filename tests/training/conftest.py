"""Fixtures of the training tests: tiny runs in this process and in others."""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.tinymodels import CAPTIONS, build_base
from tests.training import toytask

ROOT = Path(__file__).resolve().parents[2]

Fork = Callable[..., ForkProcess]
Torchrun = Callable[..., str]


@pytest.fixture
def fork_toy() -> Iterator[Fork]:
    """Starts the toy task in a fork of this process."""
    started: list[ForkProcess] = []

    def start(out: Path, **values: Any) -> ForkProcess:
        process = multiprocessing.get_context("fork").Process(target=toytask.main, args=([json.dumps({"out": str(out), **values})],))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def torchrun_toy() -> Iterator[Torchrun]:
    """Runs the toy task in two processes under torchrun, to its end or until it `fails`, and returns what it said."""
    started: list[subprocess.Popen[str]] = []

    def run(out: Path, *, fails: bool = False, **values: Any) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", toytask.__file__]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        arguments = [*launcher, json.dumps({"out": str(out), **values})]
        started.append(subprocess.Popen(arguments, env=environment, start_new_session=True, **pipes))
        said, errors = started[-1].communicate()
        assert (started[-1].returncode != 0) == fails, errors
        return said + errors

    yield run
    for process in started:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun's children too


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real Stable Diffusion folder."""
    return build_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures with two captions repeated, larger than trained at and not square, with canny-like lines as condition."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(10):
        picture_HWC = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (96, 72), interpolation=cv2.INTER_CUBIC)
        for name, image in (("images", picture_HWC), ("canny", cv2.Canny(picture_HWC, 50, 100))):
            (folder / name).mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / name / f"{index}.png"), image)
        rows.append({"file_name": f"images/{index}.png", "canny": f"canny/{index}.png", "text": CAPTIONS[index % 4], "other": 7})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder
