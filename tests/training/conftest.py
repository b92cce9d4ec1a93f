"""Fixtures of the training tests: tiny runs in this process and in others."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tinymodels import build_base

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("toytask.py")

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_toy() -> Iterator[Start]:
    """Starts the toy task in a process of its own, or in several under torchrun."""
    started: list[subprocess.Popen[str]] = []

    def start(out: Path, processes: int = 1, **values: Any) -> "subprocess.Popen[str]":
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
        command = [*launcher, str(SCRIPT), json.dumps({"out": str(out), **values})]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process, contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # torchrun's children too


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real Stable Diffusion folder."""
    return build_base(tmp_path_factory.mktemp("models") / "base")
