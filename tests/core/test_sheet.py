"""Contact sheets: where the pictures land, and that captions stay inside."""

import numpy as np
import pytest

from core.sheet import FONT_PX, GAP, MARGIN, MAX_LINES, PAPER, _font, _wrapped, contact_sheet


def flat(colour: tuple[int, int, int], width: int = 128, height: int = 128) -> np.ndarray:
    return np.full((height, width, 3), colour, np.uint8)


def test_every_picture_stands_in_its_place() -> None:
    red, green, blue = (200, 10, 10), (10, 200, 10), (10, 10, 200)
    sheet = contact_sheet([[flat(red), flat(green)], [flat(green), flat(blue)], [flat(blue), flat(red)]], ["a", "b", "c"], columns=2)
    step = 256 + GAP
    next_strip = 2 * 256 + GAP + MARGIN
    assert tuple(sheet[MARGIN + 128, MARGIN + 128]) == red
    assert tuple(sheet[MARGIN + 128, MARGIN + step + 128]) == green
    assert tuple(sheet[MARGIN + 128, MARGIN + next_strip + 128]) == green
    assert tuple(sheet[MARGIN + 128, MARGIN + next_strip + step + 128]) == blue
    assert sheet.shape[1] == MARGIN + 2 * next_strip
    below = sheet[MARGIN + 256 + 2 * MARGIN :]
    assert (below == red).all(axis=2).sum() == 256 * 256
    assert tuple(sheet[0, 0]) == PAPER


def test_hard_edges_stay_hard_and_proportions_stay() -> None:
    edges = flat((0, 0, 0))
    edges[:, 64] = 255
    cell = contact_sheet([[edges]], [""])[MARGIN : MARGIN + 256, MARGIN : MARGIN + 256]
    assert set(np.unique(cell)) == {0, 255}
    wide = contact_sheet([[flat((9, 9, 9), 200, 100)]], [""])
    rows, columns = np.nonzero((wide == 9).all(axis=2))
    assert (int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1) == (256, 128)


def test_captions_wrap_inside_their_strip() -> None:
    long = "a person in a green shirt and black pants on snow at night " * 5
    lines = _wrapped(long, 264)
    assert len(lines) == MAX_LINES
    assert lines[-1].endswith("…")
    assert all(_font(FONT_PX).getlength(line) <= 264 for line in (*lines, *_wrapped("x" * 500, 264)))
    assert _wrapped("one\ntwo", 264) == ["one", "two"]
    sheet = contact_sheet([[flat((0, 0, 0))]], [long], title="Limn")
    assert (sheet[:, 1 - MARGIN :] == PAPER).all()
    assert (sheet[1 - MARGIN :] == PAPER).all()


def test_counts_must_agree() -> None:
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([[flat((0, 0, 0))]], [])
    with pytest.raises(ValueError, match="strips"):
        contact_sheet([], [])
