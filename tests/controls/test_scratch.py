"""Adding a kind of control touches one file: a scratch extractor is seen everywhere the moment its file exists."""

import json
import subprocess
import sys
from pathlib import Path

import controls

ROOT = Path(__file__).parents[2]

EXTRACTOR = '''"""Posterise: the picture in fewer grey levels, which no published network asks for.

Source: this test.
"""

from pydantic import Field

from controls.metrics import likeness as compare_maps
from core.control import Control, Image, ByExtraction
from core.request import Frozen


class Params(Frozen):
    """How few."""

    levels: int = Field(4, ge=2, le=16, description="levels a channel that remain")


def extract(image_HWC: Image, params: Params) -> Image:
    """Rounded down: RGB uint8 HWC in and out."""
    step = 256 // params.levels
    return image_HWC // step * step


compare = ByExtraction(Params, extract, compare_maps)

CONTROL = Control(name="posterise", params=Params, extract=extract, compare=compare, compare_maps=compare_maps)
'''

# The folder is added to the package's own search path, as if the file lay in controls/.
SEEN = """
import json, sys
from pathlib import Path
import controls
controls.__path__.append({folder!r})
import cli
from controls.grammar import parse_control
from controls.prepare import load_map
from controls.documentation import page
from core.terminal import show
from web.fields import components

found = {{}}
found["names"] = controls.names()
found["grammar"] = parse_control("posterise={picture},levels=3").params
found["fields"] = list(components(controls.get("posterise").params, "posterise"))
found["docs"] = "## posterise" in page() and "levels a channel that remain" in page()
found["map"] = sorted(set(load_map(parse_control("posterise={picture},levels=2"), 64, 64).map_HWC.ravel().tolist()))
show(cli.extract.kinds())
print(json.dumps(found))
"""


def test_a_new_file_is_a_new_kind(tmp_path: Path) -> None:
    from core.images import encode_png
    from tests.controls.test_conformance import scene

    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "posterise.py").write_text(EXTRACTOR)
    picture = tmp_path / "picture.png"
    picture.write_bytes(encode_png(scene(64)))
    code = SEEN.format(folder=str(folder), picture=picture)
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stderr
    *table, last = result.stdout.splitlines()
    found = json.loads(last)
    assert set(found["names"]) == {*controls.names(), "posterise"}
    assert found["grammar"] == {"levels": 3}
    assert found["fields"] == ["posterise.levels"]
    assert found["docs"]
    assert found["map"] == [0, 128]
    assert "posterise" in "\n".join(table)
