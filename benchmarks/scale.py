"""How a batch's throughput grows with devices, and what binds first: a simulation with service times measured here.

    python benchmarks/scale.py [--jobs 20000] [--ray]

Measured: what the driver does for a job (giving it, hearing of it, its journal lines), with a crew that answers at once or with actors of
Ray. Simulated: devices that hold at most eight jobs each and take a fixed time a picture, and that driver before them. In brackets: of what
as many devices alone would draw.
"""

import argparse
import heapq
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # this script's own folder would hide the package `batch`

from batch.driver import Drive, Limits, Stop, Tally
from batch.job import Job
from batch.journal import FileJournal
from batch.planner import Bundle, bundled
from batch.store import Folder
from batch.work import Begun, Event, Outcome
from core.request import RenderRequest

HELD = 8
DEVICES = (1, 8, 64, 256, 1000)
PICTURE_S = (0.125, 0.5, 2.0)


class Instant:
    """A crew that has drawn everything before it is asked. held: jobs in flight, as with so many devices."""

    def __init__(self, held: int) -> None:
        self._held, self._events = held, list[Event]()

    @property
    def room(self) -> int:
        return self._held - len(self._events) // 2

    def give(self, bundle: Bundle) -> None:
        for job in bundle.jobs:
            self._events += [Begun(job.key), Outcome(job.key, "done", 0.5, {"canny": 0.5})]

    def events(self, timeout_s: float) -> list[Event]:
        found, self._events = self._events, []
        return found

    def drop(self) -> None: ...

    def close(self, *, now: bool = False) -> None: ...


def bundles_of(count: int) -> list[Bundle]:
    """So many jobs, as many of them together as an SD 1.5 batch has."""
    jobs = [Job(f"{i:064x}", RenderRequest(seed=i, width=64, height=64), i) for i in range(count)]
    return [Bundle(some, frozenset(job.key for job in some)) for some in bundled(jobs, lambda job: HELD)]


def driver_s(count: int, devices: int) -> float:
    """Seconds of the driver's thread for a job."""
    with tempfile.TemporaryDirectory() as folder:
        journal = FileJournal(Path(folder))
        crew = Instant(devices * HELD)
        drive = Drive(bundles_of(count), crew, Folder(Path(folder)), journal, tally=Tally(count), recorded=frozenset())
        began = time.process_time()
        drive.run(Limits(), Stop(), lambda *_: None)
        spent = time.process_time() - began
        journal.close()
    return spent / count


def simulate(devices: int, picture_s: float, driver_job_s: float, jobs: int) -> float:
    """Pictures a second: a picture that is drawn goes to the driver, which does one thing at a time and then gives its device another."""
    waiting = [HELD - 1] * devices  # jobs that lie at a device beside the one it draws
    events = [(picture_s * (1 + number / devices), number, True) for number in range(devices)]  # (when, device, drawn or given)
    heapq.heapify(events)
    driver_free = now = 0.0
    done = 0
    idle = [False] * devices
    half = 0.0  # when half was done: what lay at the devices at the start has been drawn by then
    while done < jobs:
        now, number, drawn = heapq.heappop(events)
        if drawn:
            done += 1
            half = now if done == jobs // 2 else half
            driver_free = max(driver_free, now) + driver_job_s
            heapq.heappush(events, (driver_free, number, False))
            idle[number] = waiting[number] == 0
        else:
            waiting[number] += 1
        if waiting[number] and (drawn or idle[number]):
            waiting[number] -= 1
            idle[number] = False
            heapq.heappush(events, (now + picture_s, number, True))
    return (done - jobs // 2) / (now - half)


def on_ray_s(count: int) -> float:
    """Seconds of all the driver's threads for a job that an actor of Ray draws at once."""
    from batch.cluster import Cluster
    from tests.batch.fake import OpenFake

    with tempfile.TemporaryDirectory() as folder:
        store, journal = Folder(Path(folder)), FileJournal(Path(folder))
        crew = Cluster(OpenFake(), store, "local", actors=2)
        drive = Drive(bundles_of(count), crew, store, journal, tally=Tally(count), recorded=frozenset())
        began = time.process_time()
        drive.run(Limits(), Stop(), lambda *_: None)
        spent = time.process_time() - began
        journal.close()
    return spent / count


def main() -> None:
    parser = argparse.ArgumentParser(description="How throughput grows with devices.")
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--ray", action="store_true", help="measure with Ray's calls in it")
    parser.add_argument("--driver-ms", type=float, help="take this instead of measuring")
    args = parser.parse_args()
    spent = args.driver_ms / 1000 if args.driver_ms else on_ray_s(min(args.jobs, 2000)) if args.ray else driver_s(args.jobs, 64)
    print(f"the driver takes {1000 * spent:.3f} ms a job")
    print(f"{'devices':>8}" + "".join(f"{f'{one:g} s a picture':>20}" for one in PICTURE_S))
    for devices in DEVICES:
        rates = [simulate(devices, one, spent, max(args.jobs, 40 * devices)) for one in PICTURE_S]
        shown = [f"{rate:.1f}/s ({rate * one / devices:.0%})" for rate, one in zip(rates, PICTURE_S, strict=True)]
        print(f"{devices:>8}" + "".join(f"{text:>20}" for text in shown))
    fed = ", ".join(f"{one / spent:,.0f} devices of {one:g} s" for one in PICTURE_S)
    print(f"what binds first is the driver, at {1 / spent:,.0f} pictures a second: it feeds {fed} a picture")


if __name__ == "__main__":
    main()
