"""What is painted on the page: where something acts, or a control's picture itself.

It arrives as a PNG in a `data:` address, whose parameter `drawn` says what it is to be: without one, a region, white on black; `picture`,
strokes on the uploaded picture; `map`, strokes that are the finished map. Strokes on a picture come as two sheets in one, one below the
other: the strokes' colours on black, then how far they cover, white on black.
"""

import base64
import binascii
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from core.control import Image
from core.errors import BadImage
from core.files import publish
from core.images import decode, encode_png, sha256_pixels

Drawn = Literal["region", "picture", "map"]

_FORMS: dict[str, Drawn] = {
    "data:image/png;base64,": "region",
    "data:image/png;drawn=picture;base64,": "picture",
    "data:image/png;drawn=map;base64,": "map",
}
_REGION = next(iter(_FORMS))


def drawn(painted: Any) -> Drawn:
    """What a painting is to be.

    Raises:
        BadImage: it is no painting.
    """
    return _FORMS[_form(painted)]


def strokes(painted: Any) -> Image:
    """A painting's pixels, strokes on black, RGB uint8 HWC; for `picture` its two sheets.

    Raises:
        BadImage: it is no painting.
    """
    form = _form(painted)
    try:
        return decode(base64.b64decode(str(painted)[len(form) :], validate=True))
    except (binascii.Error, ValueError):
        raise _refused() from None


def on_black(painted: Any) -> Image:
    """What is painted without any picture below it, RGB uint8 HWC.

    Raises:
        BadImage: it is no painting.
    """
    sheets_HWC = strokes(painted)
    return _sheets(sheets_HWC)[0] if drawn(painted) == "picture" else sheets_HWC


def on_picture(painted: Any, picture_HWC: Image) -> Image:
    """The picture with the strokes on it, RGB uint8 HWC; strokes of another size are brought to the picture's.

    Raises:
        BadImage: it is no painting.
    """
    height, width = picture_HWC.shape[:2]
    colour_HWC, cover_HWC = (
        cv2.resize(sheet_HWC, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.float32) for sheet_HWC in _sheets(strokes(painted))
    )
    mixed_HWC = picture_HWC * (1 - cover_HWC / 255) + colour_HWC
    drawn_HWC: Image = np.clip(np.rint(mixed_HWC), 0, 255).astype(np.uint8)
    return drawn_HWC


def keep(image_HWC: Image, out: Path) -> Path:
    """A picture published under `out`, named by its content: uploads are deleted, records stay true."""
    kept = out / "controls" / f"{sha256_pixels(image_HWC)[:24]}.png"
    if not kept.exists():
        publish(kept, encode_png(image_HWC))
    return kept


def as_region(path: Path) -> str:
    """A mask's file as the page's painting."""
    return _REGION + base64.b64encode(encode_png(decode(path))).decode()


def _form(painted: Any) -> str:
    found = next((form for form in _FORMS if str(painted).startswith(form) and len(str(painted)) > len(form)), None)
    if found is None:
        raise _refused()
    return found


def _sheets(sheets_HWC: Image) -> tuple[Image, Image]:
    """The two sheets of strokes that lie on a picture: colour and cover."""
    height, odd = divmod(sheets_HWC.shape[0], 2)
    if odd or not height:
        raise _refused()
    return sheets_HWC[:height], sheets_HWC[height:]


def _refused() -> BadImage:
    return BadImage("what was painted did not arrive as a PNG: clear it and paint it again")
