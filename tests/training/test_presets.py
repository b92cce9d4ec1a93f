"""Every config that we hand out is one that `limn train` takes."""

from pathlib import Path

import pytest

from core.errors import BadRequest
from training.run import read_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_preset_is_valid_and_can_be_overridden(path: Path) -> None:
    config = read_config(path, ["data.folder=elsewhere", "train.out=runs/x"])
    assert (str(config.data.folder), str(config.train.out)) == ("elsewhere", "runs/x")
    assert config.train.batch_size % config.train.accumulation == 0


def test_presets_go_by_their_names() -> None:
    assert read_config(Path("softedge")) == read_config(EXAMPLES / "softedge.yaml")
    assert read_config(Path("toyland"), ["train.steps=700"]).train.steps == 700
    with pytest.raises(BadRequest, match="did you mean 'softedge'"):
        read_config(Path("softegde"))
