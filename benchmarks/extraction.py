"""How long every extractor and every comparison takes on one core, and controlnet_aux's classic extractors beside ours.

    python benchmarks/extraction.py [--repeats 9] [--json FILE]

Times are the thread's own processor time, the median of the repeats, so that other work on the machine does not count. controlnet_aux has
canny and content shuffle without weights; they are run on the same array if the package is installed (it needs torchvision).
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


def beside_controlnet_aux(picture_HWC: Image, repeats: int) -> dict[str, float]:
    """Their milliseconds for the classic extractors they have, on the same array; empty if they are not installed."""
    try:
        from controlnet_aux import CannyDetector, ContentShuffleDetector
    except ImportError as error:
        print(f"controlnet_aux cannot be imported ({error}): only our own times", file=sys.stderr)
        return {}
    canny, shuffle = CannyDetector(), ContentShuffleDetector()
    size = {"detect_resolution": 512, "image_resolution": 512, "output_type": "np"}
    return {
        "canny": milliseconds(lambda: canny(picture_HWC, 100, 200, **size), repeats),
        "shuffle": milliseconds(lambda: shuffle(picture_HWC, **size), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    picture_HWC = decode(SCENE)
    rows, theirs = measure(picture_HWC, args.repeats), beside_controlnet_aux(picture_HWC, args.repeats)
    print(f"{'kind':14}{'512²':>9}{'1024²':>9}{'compare':>9}   controlnet_aux at 512²  (ms)")
    for kind, *times in ((found["kind"], found["extract 512"], found["extract 1024"], found["compare 512"]) for found in rows):
        other = f"{theirs[kind]:9.1f}" if kind in theirs else ""
        print(f"{kind:14}" + "".join(f"{time_ms:9.1f}" for time_ms in times) + f"   {other}")
    slow = [found["kind"] for found in rows if not (found["within 512"] and found["within 1024"])]
    print(f"over the limit: {', '.join(slow) or 'none'}")
    if args.json:
        args.json.write_text(
            json.dumps({"rows": rows, "controlnet_aux": theirs, "numpy": np.__version__, "opencv": cv2.__version__}, indent=2)
        )


if __name__ == "__main__":
    main()
