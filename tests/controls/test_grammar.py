"""What `--control` understands, and how it refuses."""

from pathlib import Path

import pytest

from controls.grammar import parse_control
from core.errors import BadRequest
from core.request import ControlUnit


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("canny=photo.jpg", ControlUnit(kind="canny", image=Path("photo.jpg"))),
        (
            "depth=map.png,ready,weight=0.8,start=0,end=0.7",
            ControlUnit(kind="depth", image=Path("map.png"), ready=True, weight=0.8, end=0.7),
        ),
        ("weight=2,canny=a.png,high=150,low=80", ControlUnit(kind="canny", image=Path("a.png"), weight=2, params={"low": 80, "high": 150})),
        ("canny=a=b.png,model=x=y", ControlUnit(kind="canny", image=Path("a=b.png"), model="x=y")),
        ('canny="a,b c.png",weight=1', ControlUnit(kind="canny", image=Path("a,b c.png"))),
        ("canny='a,b.png',mask=\"m,1.png\"", ControlUnit(kind="canny", image=Path("a,b.png"), mask=Path("m,1.png"))),
        ("canny=john's,weight=0.5", ControlUnit(kind="canny", image=Path("john's"), weight=0.5)),
        ('canny="say "hi".png"', ControlUnit(kind="canny", image=Path('say "hi".png'))),
        ("pose=p.png, ready=false , mode=prompt, resize=fill", ControlUnit(kind="pose", image=Path("p.png"), mode="prompt", resize="fill")),
        ("mask=m.png,canny=a.png", ControlUnit(kind="canny", image=Path("a.png"), mask=Path("m.png"))),  # in any order
        ("threshold=20,scribble=a.png", ControlUnit(kind="scribble", image=Path("a.png"), params={"threshold": 20})),
        ("mask=m.png,threshold=a.png", ControlUnit(kind="threshold", image=Path("a.png"), mask=Path("m.png"))),
        ("mask=a.png,left=0.2", ControlUnit(kind="mask", image=Path("a.png"), params={"left": 0.2})),
    ],
)
def test_understood(text: str, unit: ControlUnit) -> None:
    assert parse_control(text) == unit


def test_settings_have_their_types_so_that_equal_requests_hash_alike() -> None:
    assert parse_control("canny=a.png,low=080").params == {"low": 80}
    assert parse_control("canny=a.png").params == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cany=photo.jpg", "unknown control 'cany': did you mean 'canny'? known are blur, canny, colour_grid, "),
        ("canny=a.png,wieght=1", "unknown canny key 'wieght': did you mean 'weight'?"),
        ("depth=a.png,low=3", "unknown depth key 'low'"),
        ("canny=a,b.png", "a file name with a comma needs quotes"),
        ("photo.jpg", "give KIND=FILE"),
        ("", "give KIND=FILE"),
        ("weight=1", "give KIND=FILE"),
        ("canny=", "canny is empty"),
        ("canny=a.png,model=", "model is empty"),
        ("canny=a.png,weight", "weight has no value"),
        ("canny=a.png,weight=1,weight=1", "weight is given twice"),
        ("canny=a.png,canny=b.png", "canny is given twice"),
        ('canny="a.png', "is not closed"),
        ("canny=a.png,weight=3", "weight = '3': input should be less than or equal to 2"),
        ("canny=a.png,weight=nan", "weight = 'nan'"),
        ("canny=a.png,start=0.8,end=0.2", "start 0.8 is after end 0.2: give start <= end"),
        ("canny=a.png,low=300", "low = '300'"),
        ("canny=a.png,low=201", "low 201 is above high 200"),
        ("canny=a.png,mode=both", "mode = 'both'"),
        ("canny=a.png,kind=depth", "unknown canny key 'kind'"),
    ],
)
def test_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_control(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
