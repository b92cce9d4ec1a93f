"""How long every extractor and every comparison takes on one core, and controlnet_aux's classic extractors beside ours.

    python benchmarks/controls.py [--repeats 9] [--json FILE]

Times are the thread's own processor time, the median of the repeats, so that other work on the machine does not count. controlnet_aux has
canny, standard line art and content shuffle without weights; they are run on the same array if the package can be imported (it needs
torchvision and timm), and their maps held against ours.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, where a module is called as our package is

import controls
from core.control import Control, Image
from core.images import decode
from core.request import Frozen

SCENE = Path(__file__).parents[1] / "docs" / "images" / "scene.png"
SIZES = {512: 25.0, 1024: 100.0}  # pixels a side: the most milliseconds an extractor without a network may take
LEARNED_MS = 60.0


def milliseconds(run: Callable[[], Any], repeats: int) -> float:
    """The median over the repeats, after one call that does not count."""
    run()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run()
        times.append((time.thread_time() - start) * 1000)
    return statistics.median(times)


def settings(control: Control) -> Frozen:
    """The default settings, or those that need no estimator."""
    params = control.parse_params({})
    return params if control.available(params) or control.name != "normal" else control.parse_params({"source": "depth"})


def measure(picture_HWC: Image, repeats: int) -> list[dict[str, Any]]:
    """A row for every kind that can be extracted here."""
    rows = []
    for name in controls.names():
        control = controls.get(name)
        if control.available(settings(control)):
            rows.append(row(control, settings(control), picture_HWC, repeats))
        else:
            print(f"{name}: no network is installed, not measured", file=sys.stderr)
    return rows


def row(control: Control, params: Frozen, picture_HWC: Image, repeats: int) -> dict[str, Any]:
    """Milliseconds of extraction at each size, and of comparison at 512, and whether that is within the limits."""
    found: dict[str, Any] = {"kind": control.name}
    for size_px, most in SIZES.items():
        sized_HWC = cv2.resize(picture_HWC, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
        found[f"extract {size_px}"] = milliseconds(lambda image=sized_HWC: control.extract(image, params), repeats)
        found[f"within {size_px}"] = found[f"extract {size_px}"] < (LEARNED_MS if control.name in ("depth", "pose") else most)
    map_HWC = control.extract(picture_HWC, params)
    found["compare 512"] = milliseconds(lambda: control.compare(map_HWC, picture_HWC, params), repeats)
    return found


def beside_controlnet_aux(picture_HWC: Image, repeats: int) -> dict[str, dict[str, float]]:
    """Of the classic extractors that they have: their milliseconds and ours on the same array, and the share of pixels within a grey level.

    Empty if they cannot be imported. Their flow for shuffling is drawn anew at every call, so its map is not held against ours.
    """
    try:
        from controlnet_aux import CannyDetector, ContentShuffleDetector, LineartStandardDetector
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        print(f"controlnet_aux cannot be imported ({' '.join(str(error).split())[:80]}): only our own times", file=sys.stderr)
        return {}
    side = min(picture_HWC.shape[:2])
    size = {"detect_resolution": side, "image_resolution": side, "output_type": "np"}
    canny, lineart, shuffle = CannyDetector(), LineartStandardDetector(), ContentShuffleDetector()
    theirs: dict[str, Callable[[], Any]] = {
        "canny": lambda: canny(picture_HWC, 100, 200, **size),
        "lineart": lambda: lineart(picture_HWC, detect_resolution=side, output_type="np"),
        "shuffle": lambda: shuffle(picture_HWC, **size),
    }
    found = {}
    for kind, run in theirs.items():
        control = controls.get(kind)
        ours = lambda control=control: control.extract(picture_HWC, settings(control))  # noqa: E731
        found[kind] = {"theirs": milliseconds(run, repeats), "ours": milliseconds(ours, repeats)}
        if kind != "shuffle":
            apart = np.abs(ours().astype(int) - np.asarray(run())[..., :3])
            found[kind]["equal"] = float((apart <= 1).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    picture_HWC = decode(SCENE)
    rows, theirs = measure(picture_HWC, args.repeats), beside_controlnet_aux(picture_HWC, args.repeats)
    print(f"{'kind':14}{'512²':>9}{'1024²':>9}{'compare':>9}   (ms of one core)")
    for kind, *times in ((found["kind"], found["extract 512"], found["extract 1024"], found["compare 512"]) for found in rows):
        print(f"{kind:14}" + "".join(f"{time_ms:9.1f}" for time_ms in times))
    for kind, other in theirs.items():
        equal = f", {other['equal']:.2%} of the pixels alike" if "equal" in other else ""
        print(f"{kind} by controlnet_aux at 512²: {other['theirs']:.1f} ms, ours {other['ours']:.1f} ms{equal}")
    slow = [found["kind"] for found in rows if not (found["within 512"] and found["within 1024"])]
    print(f"over the limit: {', '.join(slow) or 'none'}")
    if args.json:
        args.json.write_text(
            json.dumps({"rows": rows, "controlnet_aux": theirs, "numpy": np.__version__, "opencv": cv2.__version__}, indent=2)
        )


if __name__ == "__main__":
    main()
