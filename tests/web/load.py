"""Many programs at once on the running page, each of which wants its own pictures: `make load` has twenty ask five times.

First all wait for each answer, so that nobody is refused; then each asks for everything at once, so that the queue fills up.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradio_client import Client

from core.provenance import read_record
from tests.web.running import Site, serving

FULL = "waiting already"
# Pictures, previews and arenas of the allocator come and go; what is kept for each picture would show as far more over a hundred of them.
MOST_GROWTH_MB = 48.0
PATIENCE_S = 600


@dataclass
class Tally:
    """What became of the requests. strange: answers that are neither the asked picture nor a refusal."""

    asked: int = 0
    answered: int = 0
    refused: list[str] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    growth_mb: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.asked} asked in {self.seconds:.0f} s: {self.answered} answered with their own picture, {len(self.refused)} refused, "
            f"{len(self.strange)} strange; memory {self.growth_mb:+.1f} MB"
        )


class Caller:
    """A program with a session of its own."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.client = Client(site.url, verbose=False, download_files=str(folder), httpx_kwargs={"timeout": PATIENCE_S})

    def ask(self, seed: int, **changed: Any) -> Any:
        """A picture with this seed, small unless its size is among what is `changed`; a promise."""
        return self.client.submit({"steps": 1, "width": 64, "height": 64, "seed": seed} | changed, api_name="/render")


def rounds(site: Site, callers: int, each: int, folder: Path) -> Tally:
    """Every caller's requests, one by one, then all at once; the first round warms up and is counted, but not for memory."""
    tally = Tally()
    with ThreadPoolExecutor(callers) as pool:
        programs = list(pool.map(lambda _: Caller(site, folder), range(callers)))

        def one_by_one(number: int, base: int, times: int) -> None:
            for i in range(times):
                seed = base + 100 * number + i
                _note(tally, seed, programs[number].ask(seed).result(PATIENCE_S))

        def at_once(number: int, base: int, times: int) -> None:
            jobs = [(base + 100 * number + i, programs[number].ask(base + 100 * number + i)) for i in range(times)]
            for seed, job in jobs:
                _note(tally, seed, job.result(PATIENCE_S))

        began = time.perf_counter()
        list(pool.map(lambda number: at_once(number, 10_000, each), range(callers)))
        before = site.memory_mb()
        list(pool.map(lambda number: one_by_one(number, 20_000, each), range(callers)))
        list(pool.map(lambda number: at_once(number, 30_000, each), range(callers)))
        tally.growth_mb = site.memory_mb() - before
        tally.seconds = time.perf_counter() - began
    tally.asked = 3 * callers * each
    return tally


def _note(tally: Tally, seed: int, answer: Any) -> None:
    texts = [value for value in answer if isinstance(value, str)]
    picture = next((Path(text) for text in texts if text.endswith(".png")), None)
    refusal = next((text for text in texts if FULL in text), None)
    if picture is not None and read_record(picture).seed == seed:
        tally.answered += 1
    elif picture is None and refusal is not None:
        tally.refused.append(refusal)
    else:
        tally.strange.append(str(answer)[:300])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryDirectory() as taken, serving(Path(out)) as running:
        tempfile.tempdir = taken  # Gradio's client leaves a folder there for every answer
        found = rounds(running, 20, 5, Path(taken))
    print(found, *dict.fromkeys(found.refused), *found.strange, sep="\n")
    sys.exit(bool(found.strange) or found.growth_mb > MOST_GROWTH_MB)
