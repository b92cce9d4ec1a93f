"""Registries found by looking into a package."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from core.errors import BadRequest
from core.registry import discover, lookup


@pytest.fixture
def package(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """A package of its own in a temporary folder, forgotten afterwards."""
    name = f"things_{request.node.name}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("OTHER = 1\n")
    for module in ("zebra", "apple"):
        (folder / f"{module}.py").write_text(f"from types import SimpleNamespace\nTHING = SimpleNamespace(name={module!r}, size=3)\n")
    sys.path.insert(0, str(tmp_path))
    yield importlib.import_module(name)
    sys.path.remove(str(tmp_path))
    for module in [loaded for loaded in sys.modules if loaded.startswith(name)]:
        del sys.modules[module]


def test_every_module_with_the_attribute_is_found_by_its_own_name(package: ModuleType) -> None:
    found = discover(package, "THING")
    assert list(found) == ["apple", "zebra"]
    assert found["apple"].size == 3


def test_a_new_file_is_enough(package: ModuleType) -> None:
    (Path(package.__path__[0]) / "mango.py").write_text("from types import SimpleNamespace\nTHING = SimpleNamespace(name='mango')\n")
    assert list(discover(package, "THING")) == ["apple", "mango", "zebra"]


def test_two_modules_with_one_name_are_our_own_mistake(package: ModuleType) -> None:
    (Path(package.__path__[0]) / "twin.py").write_text("from types import SimpleNamespace\nTHING = SimpleNamespace(name='apple')\n")
    with pytest.raises(ValueError, match="already offers"):
        discover(package, "THING")


def test_lookup_names_the_nearest_entry() -> None:
    registry = {"canny": 1, "depth": 2, "pose": 3}
    assert lookup(registry, "depth", "control") == 2
    with pytest.raises(BadRequest, match="unknown control 'cany': did you mean 'canny'\\? known are canny, depth, pose"):
        lookup(registry, "cany", "control")
    with pytest.raises(BadRequest, match="unknown control 'zzz': known are canny, depth, pose"):
        lookup(registry, "zzz", "control")
