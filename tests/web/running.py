"""A running `limn ui`, in a process of its own on a free port."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "models" / "toyland"


@dataclass(frozen=True)
class Site:
    """A running `limn ui`: its address, the folder of its pictures, everything it has printed, its process."""

    url: str
    port: int
    out: Path
    log: list[str]
    process: int

    def memory_mb(self) -> float:
        """What the process holds in memory now (Linux)."""
        lines = Path(f"/proc/{self.process}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def chromium() -> str | None:
    """The system's browser; None for Playwright's own."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@contextlib.contextmanager
def serving(out: Path, model: str | None = None) -> Iterator[Site]:
    """The page, as `limn ui` serves it, until the block is left; pictures go to `out`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cli", "ui", "--port", str(port), "--out", str(out)]
    command += [] if model is None else ["--model", model]
    log: list[str] = []
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=out, env=environment) as process:
        assert process.stdout is not None
        try:
            while "http" not in "".join(log[-1:]):
                line = process.stdout.readline()
                assert line, f"limn ui ended with {process.wait()}: {''.join(log)}"
                log.append(line)
            rest = threading.Thread(target=log.extend, args=(process.stdout,), daemon=True)
            rest.start()
            yield Site(f"http://127.0.0.1:{port}", port, out, log, process.pid)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            rest.join(10)
        finally:
            process.kill()
