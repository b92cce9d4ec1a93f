"""The page about controls says what the code says."""

from pathlib import Path

import controls
from controls.documentation import page, sheet
from core.images import decode

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "controls.md").read_text(encoding="utf-8") == page(), "run: python -m controls.documentation"


def test_every_kind_and_every_setting_is_on_it() -> None:
    text = page()
    for name in controls.names():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for setting, field in controls.get(name).params.model_fields.items():
            assert f"| `{setting}` |" in section
            assert str(field.description) in section


def test_the_sheet_shows_what_can_be_shown() -> None:
    picture = decode(DOCS / "images" / "scene.png")
    finished = {name: decode(DOCS / "images" / f"scene-{name}.png") for name in ("depth", "pose", "segmentation")}
    assert picture.shape == (512, 512, 3)
    assert sheet(picture, finished).shape == decode(DOCS / "images" / "controls.png").shape
