"""A batch killed at random moments, again and again, and what is left of it in the end: make crash.

    python benchmarks/crash.py [--jobs 1000] [--kills 100] [--engine fake|toyland] [--crew alone|workers|ray] [--seed 0]

One run is left alone. Another, of the same jobs, is killed with SIGKILL at seeded random moments (with a crew: the driver or one of its
workers) and started again each time, then left to finish. Both folders must hold the same files, bit for bit, and nothing else.
"""

import argparse
import contextlib
import hashlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the fake engine stands among the tests, which are not installed

from batch.doctor import Doctor
from batch.job import make_jobs
from batch.journal import read_journal
from batch.manifest import Row
from batch.runner import Settings, run_batch
from batch.store import JOURNAL, Folder, open_store, pictures
from batch.work import Open, OpenRenderer
from batch.workers import warm
from core.request import RenderRequest
from tests.batch.fake import NothingToKnow, OpenFake

EARLY = 0.1  # share of kills that come before the first job
FAKE_S = 0.002
KEPT = 64  # jobs that are left for the last kill: workers finish whole bundles while it is aimed


@dataclass(frozen=True)
class Case:
    """What is drawn, and by whom."""

    jobs: int
    engine: str
    crew: str

    def arguments(self) -> list[str]:
        return ["--jobs", str(self.jobs), "--engine", self.engine, "--crew", self.crew]


def child(out: Path, case: Case) -> None:
    """One run; says what is left in the end."""
    fake = case.engine == "fake"
    prompt = "a red sphere on grass"
    rows = [Row(i + 1, RenderRequest(prompt=prompt, seed=i, width=64, height=64, steps=4)) for i in range(case.jobs)]
    jobs = make_jobs(rows, NothingToKnow() if fake else Doctor()).jobs
    opens: Open = OpenFake(FAKE_S) if fake else OpenRenderer("toyland", device="cpu", threads=1)
    forked = case.crew == "workers"  # as `limn render` has them
    if forked:
        warm()
    workers, ray = 0 if case.crew == "alone" else 2, "local" if case.crew == "ray" else None
    settings = Settings(open_drawer=opens, workers=workers, ray=ray, forked=forked)
    tally, _ = run_batch(jobs, open_store(out), settings, lambda *_: None)
    print(f"left {tally.left}", flush=True)


def start(out: Path, case: Case) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "--child", str(out), *case.arguments()]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True, cwd=ROOT)


def finish(out: Path, case: Case) -> float:
    """Runs to the end; seconds."""
    began = time.perf_counter()
    process = start(out, case)
    printed, _ = process.communicate()
    if process.returncode != 0 or "left 0" not in printed:
        raise SystemExit(f"a run that nobody killed ended with {process.returncode}: {printed}")
    return time.perf_counter() - began


def kill_one(out: Path, case: Case, share: float, chance: random.Random, *, pace_s: float) -> str:
    """Starts a run and kills it, or one of its workers, after about `share` pictures; who was killed, "" where it had ended before.

    pace_s: seconds from one picture to the next.
    """
    process = start(out, case)
    if chance.random() < EARLY:
        watch(process, out, share, most_s=chance.uniform(0.0, 0.5))
    elif case.engine == "fake":
        watch(process, out, chance.uniform(0.0, 1.8 * share))
    else:  # a bundle's pictures appear all at once: wherever it is within one
        watch_start(process, out)
        time.sleep(chance.uniform(0.0, 1.8 * share) * pace_s)
    time.sleep(chance.uniform(0.0, 0.01))  # wherever it is within a picture
    workers = [] if case.crew == "alone" else descendants(process.pid)
    whom = "worker" if workers and chance.random() < 0.5 else "driver"
    if process.poll() is not None:
        return ""
    if whom == "worker":
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
        watch(process, out, 0.2 * share + 1)  # the driver goes on with another
    if process.poll() is None:
        process.kill()
    process.wait()
    if case.crew == "ray":
        end_session(process.pid)
    return whom


def watch(process: subprocess.Popen[str], out: Path, more: float, *, most_s: float = float("inf")) -> None:
    """Waits until so many more pictures are there, the run has ended, or so many seconds have gone."""
    target, until = len(done(out)) + more, time.perf_counter() + most_s
    while process.poll() is None and len(done(out)) < target and time.perf_counter() < until:
        time.sleep(0.002)


def watch_start(process: subprocess.Popen[str], out: Path) -> None:
    """Waits until another job is begun, or the run has ended."""
    journal = out / JOURNAL

    def begun() -> int:
        return journal.read_bytes().count(b'"event": "started"') if journal.exists() else 0

    before = begun()
    while process.poll() is None and begun() == before:
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The worker processes below a process: Ray's, or those that the process below it has forked."""
    found, waiting = [], [pid]
    while waiting:
        one = waiting.pop()
        try:
            children = [int(word) for word in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        except (OSError, ValueError):
            continue
        waiting += children
        forks = b"forkserver" in command_line(one)
        found += [number for number in children if forks or b"ray::Actor" in command_line(number)]
    return found


def command_line(number: int) -> bytes:
    """Of a process, empty where there is none."""
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return b""


def end_session(session: int) -> None:
    """Ends what a killed driver of Ray left behind: the processes of its own session, none else."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    os.kill(int(entry.name), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue


def digests(out: Path) -> dict[str, str]:
    """Every picture's SHA-256 by name."""
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in pictures(Folder(out).names())}


def leftovers(out: Path) -> Sequence[Path]:
    return list(out.rglob(".limn-*"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a batch again and again; every picture must be there once, bit for bit.")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--engine", choices=["fake", "toyland"], default="fake")
    parser.add_argument("--crew", choices=["alone", "workers", "ray"], default="alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    case = Case(args.jobs, args.engine, args.crew)
    if args.child is not None:
        return child(args.child, case)
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="limn-crash-") as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        seconds = finish(whole, case)
        expected = digests(whole)
        drawing = [event["seconds"] for event in read_journal(Folder(whole)) if event["event"] == "done"]
        pace_s = statistics.median(drawing) / (1 if case.crew == "alone" else 2)
        victims: list[str] = []
        began, runs = time.perf_counter(), 0
        while len(victims) < args.kills and len(done(killed)) < case.jobs:
            runs += 1
            spare = max(0, case.jobs - len(done(killed)) - min(KEPT, case.jobs // 10))
            share = spare / (args.kills - len(victims))
            victim = kill_one(killed, case, share, chance, pace_s=pace_s)
            if victim:
                victims.append(victim)
        torn = len(leftovers(killed))
        finish(killed, case)
        found = digests(killed)
        wrong = [name for name, digest in found.items() if expected.get(name) != digest]
        print(f"{case.jobs} jobs, engine {case.engine}, crew {case.crew}; left alone: {seconds:.1f} s")
        print(f"{len(victims)} kills ({victims.count('driver')} of the driver, {victims.count('worker')} of a worker) in {runs} runs,")
        print(f"{time.perf_counter() - began:.1f} s; before the last run {torn} torn files lay there, after it {len(leftovers(killed))}")
        print(f"pictures: {len(found)}, missing: {len(expected.keys() - found.keys())}, different: {len(wrong)}")
        if found != expected or len(found) != case.jobs or leftovers(killed) or len(victims) < args.kills:
            raise SystemExit("FAILED")
        print("every picture is there exactly once, bit for bit as in the run that was left alone")


def done(out: Path) -> set[str]:
    return pictures(Folder(out).names()) if out.is_dir() else set()


if __name__ == "__main__":
    main()
