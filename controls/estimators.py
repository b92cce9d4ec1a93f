"""Where the learned extractors and metrics find their networks.

A kind has an embedded estimator when a loader for it is registered in `LOADERS` and its folder is installed. Any other is named by a hub
id, a folder of transformers' or a file of ONNX's; `PUBLISHED` holds those that go with published models. Without a name and without an
embedded one `find` gives None, the kind's extractor says so, and its fidelity is reported as not measured.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import BadModel, BadRequest

Image = NDArray[np.uint8]  # RGB, HWC
# depth: uint8 (H, W), near = bright; pose: joints (P, 18, 2) in pixels, or People; segmentation: label numbers (H, W); mask: uint8 (H, W)
Estimate = Callable[..., Any]

ROOT = Path(__file__).resolve().parent.parent / "models" / "toyland"
EXPLAINED = "hub id, folder or .onnx file of the {} network; empty for the one that goes with the model"
EXPLAINED_FOLDER = "hub id or folder of the {} network; empty for the one that goes with the model"  # kinds that read no ONNX

# What extracts for real models unless a request names another.
PUBLISHED = {
    "depth": "depth-anything/Depth-Anything-V2-Small-hf",
    "pose": "usyd-community/vitpose-base-simple",
    "segmentation": "openmmlab/upernet-convnext-tiny",
    "mask": "facebook/sam-vit-base",
}


def _depth(folder: Path) -> Estimate:
    from controls.learned import DepthEstimator

    return DepthEstimator(folder)


def _pose(folder: Path) -> Estimate:
    from controls.learned import PoseEstimator

    return PoseEstimator(folder)


def _published(kind: str, name: str) -> Estimate:
    """The estimator in a hub id, a transformers folder or an ONNX file."""
    if Path(name).suffix == ".onnx":
        from controls import onnxfile

        readers: dict[str, Callable[[Path], Estimate]] = {"depth": onnxfile.Depth, "pose": onnxfile.Pose}
        if kind not in readers:
            raise BadModel(f"{kind} estimator {name!r}: only {' and '.join(readers)} are read from ONNX; give a folder or hub id")
        return readers[kind](Path(name).expanduser())
    from controls import networks, people

    loaders: dict[str, Callable[[str], Estimate]] = {
        "depth": networks.Depth,
        "pose": people.Pose,
        "segmentation": networks.Segmentation,
        "mask": networks.Mask,
    }
    return loaders[kind](name)


LOADERS: dict[str, Callable[[Path], Estimate]] = {"depth": _depth, "pose": _pose}
_named: dict[tuple[str, str], Estimate] = {}  # the last few that were loaded by name
_MOST_LOADED = 4


@lru_cache(maxsize=8)
def _load(kind: str, folder: Path) -> Estimate:
    return LOADERS[kind](folder)


def find(kind: str, name: str = "") -> Estimate | None:
    """The estimator of one kind, loaded once: the named one, or the embedded one; None where none is named and none is installed.

    Raises:
        BadModel: what is named is missing, damaged or of another kind.
    """
    if not name:
        folder = ROOT / f"estimator-{kind}"
        return _load(kind, folder) if kind in LOADERS and folder.is_dir() else None
    if (kind, name) not in _named:
        loaded = _published(kind, name)
        while len(_named) >= _MOST_LOADED:
            _named.pop(next(iter(_named)))
        _named[kind, name] = loaded
    return _named[kind, name]


def at_hand(kind: str, name: str = "") -> Estimate | None:
    """As `find`, but a named estimator only if it is loaded already: measuring fidelity is no reason to load a large network."""
    return _named.get((kind, name)) if name else find(kind)


def installed(kind: str, name: str = "") -> bool:
    """Whether an estimator is named, or embedded; nothing is loaded."""
    return bool(name) or (kind in LOADERS and (ROOT / f"estimator-{kind}").is_dir())


def need(kind: str, name: str = "", *, control: str | None = None) -> Estimate:
    """The estimator of one kind; `control` is the control that asks, if that is called otherwise.

    Raises:
        BadRequest: none is named and none is installed.
        BadModel: as `find`.
    """
    estimate = find(kind, name)
    if estimate is None:
        asks = control or kind
        raise BadRequest(
            f"{asks}: no {kind} estimator is installed, so a picture cannot be used; give a finished {asks} map with 'ready', "
            "or name a network with estimator="
        )
    return estimate


def default(kind: str, model: str) -> str:
    """The name of the estimator that goes with a model: none (the embedded one) for toyland, the published one for all others."""
    return "" if model == "toyland" else PUBLISHED.get(kind, "")
