"""Sizes by aspect: as many pixels as before, in another shape."""

import math

from core.errors import BadRequest
from core.request import build_request

ASPECTS = {"1:1": 1.0, "4:3": 4 / 3, "3:2": 3 / 2, "16:9": 16 / 9, "3:4": 3 / 4, "2:3": 2 / 3, "9:16": 9 / 16}
STEP_PX = 16  # every family's pictures have such sides at least; large ones are rounded to what models were trained at
LARGE_PX, LARGE_STEP_PX = 512, 64
LEAST_PX = 64  # as in core.request


def of_aspect(aspect: str, width: int, height: int) -> tuple[int, int]:
    """Width and height of an aspect, with about as many pixels as `width` × `height`.

    Raises:
        BadRequest: no such aspect, or no such size.
    """
    if aspect not in ASPECTS:
        raise BadRequest(f"aspect {aspect!r}: known are {', '.join(ASPECTS)}")
    size = build_request({"width": width, "height": height})
    root = math.sqrt(ASPECTS[aspect])
    side = math.sqrt(size.width * size.height)
    step = LARGE_STEP_PX if side >= LARGE_PX else STEP_PX
    found = [max(step, round(length / step) * step) for length in (side * root, side / root)]
    return max(LEAST_PX, found[0]), max(LEAST_PX, found[1])
