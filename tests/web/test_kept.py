"""What a browser had stored, whoever wrote it there."""

from typing import Any

import pytest

from web import kept

FIELDS = {"steps": None, "name": None}


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ({"steps": 4, "name": "mine"}, {"steps": 4, "name": "mine"}),
        ({"steps": None, "gone": 1}, {"steps": None}),
        ({"steps": [1], "name": {"__type__": "update"}}, {}),
        ({"name": "x" * (kept.MOST_CHARACTERS + 1)}, {}),
        ([4], {}),
        (None, {}),
    ],
)
def test_only_plain_values_of_known_fields_come_back(stored: Any, found: dict[str, Any]) -> None:
    assert kept.read({"version": "", "values": stored}, FIELDS) == found
    assert kept.read(stored, FIELDS) == {}
