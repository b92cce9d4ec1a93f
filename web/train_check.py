"""A dataset looked at in a thread of its own, so that the page hears how far it is and may leave."""

import concurrent.futures
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.control import Image
from core.errors import Cancelled
from training.pairs import DataConfig

if TYPE_CHECKING:
    from training.check import Findings

INTERVAL_S = 0.3


@dataclass(frozen=True)
class Looking:
    """`seen` of `total` pairs are behind us; total is 0 while they are listed."""

    seen: int = 0
    total: int = 0


@dataclass(frozen=True, eq=False)
class Looked:
    """What was found, and a sheet of some pairs, RGB uint8 HWC, where there are any."""

    found: "Findings"
    sheet_HWC: Image | None


def look(config: DataConfig) -> Iterator[Looking | Looked]:
    """How far the check is, several times a second, then what it found; who stops listening stops it at the next pair.

    Raises:
        BadRequest: there is no dataset to look at.
    """
    from training.check import check

    left, news = threading.Event(), Looking()

    def report(seen: int, total: int) -> None:
        nonlocal news
        news = Looking(seen, total)
        if left.is_set():
            raise Cancelled("nobody waits for this check any more")

    with concurrent.futures.ThreadPoolExecutor(1, "limn-check") as pool:
        future = pool.submit(check, config, on_progress=report)
        try:
            while not concurrent.futures.wait([future], INTERVAL_S).done:
                yield news
            yield Looked(*future.result())
        finally:
            left.set()
