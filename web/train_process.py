"""One training at a time, in a process of its own: it goes on while pages come and go, and a page can be drawn on meanwhile.

What says that one is running is the operating system's lock on `.training.lock` in the runs' folder: the process inherits it and loses it
when it ends, however it ends. So a training that outlived the page that started it is found again, and can be stopped, by the next one.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from core import lock
from core.errors import BadRequest, shortened
from core.files import publish
from renderer import ROOT
from training.config import ControlNetConfig
from web import train_folder
from web.train_folder import ATTEMPT, SAID, SETTINGS
from web.train_settings import Places

LOCK = ".training.lock"
NICENESS = 5  # on the CPU, drawing comes first
GRACE_S = 8.0  # that a training has to save itself when the page is closed


@dataclass(frozen=True)
class Running:
    """The training that runs now."""

    name: str
    process: int


class Trainings:
    """The trainings in a folder, and the one that runs."""

    def __init__(self, places: Places) -> None:
        self.places, self.runs = places, places.runs
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def start(self, config: ControlNetConfig) -> str:
        """Begin a training in the folder `config.train.out`; its name.

        Raises:
            BadRequest: one is running, the folder holds a training already, or the dataset is not there.
        """
        folder = config.train.out
        if not config.data.folder.exists():
            raise BadRequest(f"dataset {shortened(config.data.folder.name)} is not there: choose another")
        saved = (folder / "weights").exists() or any(folder.glob("checkpoints/step-*"))
        if folder.exists() and (saved or not (folder / SETTINGS).is_file()):
            raise BadRequest(f"{folder.name!r} exists already: resume it where it can be chosen, or give the new training another name")
        with self._turn, self._locked() as descriptor:
            if folder.exists():  # an attempt of ours that saved nothing
                shutil.rmtree(folder)
            text = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
            publish(folder / SETTINGS, text.encode())
            self._launch(folder, descriptor)
        return folder.name

    def resume(self, folder: Path) -> None:
        """Go on with a training, with the settings that it has.

        Raises:
            BadRequest: one is running, or there is nothing to go on with.
        """
        if train_folder.read(folder).finished:
            raise BadRequest(f"training {folder.name!r} is finished: use it, or start one with another name")
        with self._turn, self._locked() as descriptor:
            self._launch(folder, descriptor)

    def running(self) -> Running | None:
        """The training that runs now."""
        with self._turn:
            return self._running()

    def remove_upload(self, text: str) -> str:
        """Removes an uploaded dataset; its name.

        Raises:
            BadRequest: it is none, or is being trained on.
        """
        folder, uploads = Path(text.strip()).absolute(), self.places.uploads.absolute()
        if folder.parent != uploads or folder.name == ".." or folder.is_symlink() or not folder.is_dir():
            raise BadRequest(f"{shortened(text)} is no uploaded dataset: choose one from {uploads.name!r} first")
        running = self.running()
        if running is not None:
            used = train_folder.read(self.places.run(running.name)).settings.get("data", {}).get("folder", "")
            if Path(str(used)).absolute() == folder:
                raise BadRequest(f"training {running.name!r} is reading {folder.name!r}: stop it first, or wait")
        shutil.rmtree(folder)
        return folder.name

    def networks(self) -> list[str]:
        """The trained ControlNets that can be drawn with, as a request calls them."""
        found = (train_folder.usable(self.runs / name) for name in train_folder.names(self.runs))
        return [train_folder.short(one[0]) for one in found if one is not None]

    def stop(self) -> None:
        """Ask the running training to finish its step, save, and end."""
        with self._turn:
            found = self._running()
            if found is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found.process, signal.SIGINT)

    def close(self) -> None:
        """Stop what this page has started; it has a few seconds to save itself, and goes on when it is resumed."""
        if self._child is None or self._child.poll() is not None:
            return
        self.stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(GRACE_S)

    def _running(self) -> Running | None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None
        found = lock.holder(self.runs / LOCK)
        return Running(str(found.get("name", "?")), int(found["process"])) if found and "process" in found else None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Holds the lock until the block is left; who inherits the descriptor holds it longer."""
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            descriptor = lock.take(self.runs / LOCK)
        except OSError as error:
            raise BadRequest(f"folder {self.runs.name!r} cannot be written to ({error.strerror}): start the page with --runs") from None
        if descriptor is None:
            other = self._running()
            who = f"training {other.name!r} is running" if other else "a training is starting"
            raise BadRequest(f"{who}, and there is one at a time: stop it first, or wait")
        try:
            os.ftruncate(descriptor, 0)  # nobody takes the last one's process for this one's
            yield descriptor
        finally:
            os.close(descriptor)

    def _launch(self, folder: Path, descriptor: int) -> None:
        """`limn train` with the folder's settings; what it says goes to a file there."""
        command = [sys.executable, "-m", "cli", "train", str(train_folder.settings_of(folder))]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        with (folder / SAID).open("ab") as said, _interrupts_blocked():
            said.write(time.strftime(f"{ATTEMPT}%Y-%m-%d %H:%M:%S\n").encode())
            said.flush()
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[descriptor],
                start_new_session=True,  # Ctrl-C at the page's terminal is the page's; `close` hands it on
            )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._child.pid, NICENESS)
        lock.sign(descriptor, lock.me() | {"name": folder.name, "process": self._child.pid})


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started here finds SIGINT blocked, so that a stop waits until it is ready (`core.terminal.interrupts_held`)."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
