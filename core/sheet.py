"""Contact sheets: strips of pictures side by side, each strip with its caption, in columns on one page."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

Image = NDArray[np.uint8]  # RGB, HWC

PAPER, INK, FRAME = (250, 250, 248), (40, 40, 44), (214, 214, 210)
MARGIN, GAP, LINE = 24, 8, 20  # pixels: around strips, between a strip's pictures, of a caption's line
FONT_PX, TITLE_PX = 15, 24
MAX_LINES = 3


def contact_sheet(
    strips: Sequence[Sequence[Image]], captions: Sequence[str], *, columns: int = 1, cell_px: int = 256, title: str = ""
) -> Image:
    """One page with every strip of pictures and its caption below it: RGB uint8 HWC in and out.

    A picture is scaled to fit a square of `cell_px` with its proportions kept: by nearest neighbour where that is a whole factor and the
    picture has hard edges (few colours: a drawn map), by Lanczos otherwise. Captions wrap, and end in … after three lines.

    Raises:
        ValueError: no strip, an empty strip, or another number of captions than of strips.
    """
    if not strips or not all(strips) or len(strips) != len(captions):
        raise ValueError(f"{len(strips)} strips of {[len(strip) for strip in strips]} pictures and {len(captions)} captions")
    cells = max(len(strip) for strip in strips)
    strip_px = cells * cell_px + (cells - 1) * GAP
    rows = [range(start, min(start + columns, len(strips))) for start in range(0, len(strips), columns)]
    texts = [_wrapped(caption, strip_px) for caption in captions]
    heights = [cell_px + GAP + LINE * max(len(texts[i]) for i in row) + MARGIN for row in rows]
    top = MARGIN + (TITLE_PX + MARGIN if title else 0)
    width = MARGIN + min(columns, len(strips)) * (strip_px + MARGIN)
    page = Pillow.new("RGB", (width, top + sum(heights)), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((MARGIN, MARGIN), title, INK, _font(TITLE_PX))
    for row, height in zip(rows, heights, strict=True):
        for place, index in enumerate(row):
            left = MARGIN + place * (strip_px + MARGIN)
            for cell, picture in enumerate(strips[index]):
                _paste(page, picture, (left + cell * (cell_px + GAP), top), cell_px)
            for number, line in enumerate(texts[index]):
                draw.text((left, top + cell_px + GAP + number * LINE), line, INK, _font(FONT_PX))
        top += height
    return np.asarray(page)


def _paste(page: Pillow.Image, picture_HWC: Image, at: tuple[int, int], cell_px: int) -> None:
    height, width = picture_HWC.shape[:2]
    scale = cell_px / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    hard = scale == int(scale) and len(np.unique(picture_HWC.reshape(-1, 3), axis=0)) <= 64
    fitted = Pillow.fromarray(picture_HWC).resize(size, Pillow.Resampling.NEAREST if hard else Pillow.Resampling.LANCZOS)
    x, y = at[0] + (cell_px - size[0]) // 2, at[1] + (cell_px - size[1]) // 2
    ImageDraw.Draw(page).rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=FRAME)
    page.paste(fitted, (x, y))


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _wrapped(text: str, width_px: int) -> list[str]:
    """The text in lines that fit, at most `MAX_LINES` for every line break of its own."""
    lines = []
    for paragraph in text.splitlines() or [""]:
        lines += _lines(paragraph.split(), width_px)
    return lines


def _lines(words: list[str], width_px: int) -> list[str]:
    font = _font(FONT_PX)
    lines = [""]
    for word in words:
        joined = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(joined) <= width_px:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1]} …"]
    return [_cut(line, width_px) for line in lines]


def _cut(line: str, width_px: int) -> str:
    font = _font(FONT_PX)
    if font.getlength(line) <= width_px:
        return line
    while line and font.getlength(f"{line}…") > width_px:
        line = line[:-1]
    return f"{line}…"
