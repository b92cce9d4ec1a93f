"""Where the learned extractors and metrics find their networks.

A kind has an estimator when a loader for it is registered in `LOADERS` and its folder is installed; otherwise `find` gives None, the
kind's extractor says so, and its fidelity is reported as not measured.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import BadRequest

Image = NDArray[np.uint8]  # RGB, HWC
Estimate = Callable[[Image], NDArray[Any]]  # depth: uint8 (H, W), near = bright; pose: joints (P, 18, 2) in pixels

ROOT = Path(__file__).resolve().parent.parent / "models" / "toyland"


def _depth(folder: Path) -> Estimate:
    from controls.learned import DepthEstimator

    return DepthEstimator(folder)


def _pose(folder: Path) -> Estimate:
    from controls.learned import PoseEstimator

    return PoseEstimator(folder)


LOADERS: dict[str, Callable[[Path], Estimate]] = {"depth": _depth, "pose": _pose}


@lru_cache(maxsize=8)
def _load(kind: str, folder: Path) -> Estimate:
    return LOADERS[kind](folder)


def find(kind: str) -> Estimate | None:
    """The estimator of one kind of control, loaded once, or None where none is installed."""
    folder = ROOT / f"estimator-{kind}"
    return _load(kind, folder) if kind in LOADERS and folder.is_dir() else None


def need(kind: str) -> Estimate:
    """The estimator of one kind of control.

    Raises:
        BadRequest: none is installed.
    """
    estimate = find(kind)
    if estimate is None:
        raise BadRequest(f"{kind}: no {kind} estimator is installed, so a picture cannot be used; give a finished {kind} map with 'ready'")
    return estimate
