"""Rows that pass blocks by are those of a network without these blocks, in every family of transformers; the other rows are untouched."""

import pytest
import torch
from torch import Tensor, nn

from core.request import SkipLayers
from pipelines.engine import Engine, choose_place
from pipelines.family import Drawing, Family, Text
from pipelines.guidance import Branches, Guidance
from pipelines.skipping import passed_by, skipped_blocks, skips
from tests.pipelines.test_matrix import BUILDERS

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")

SIDE = 64


@pytest.fixture(scope="module", params=["sd3", "flux", "sana", "qwenimage", "zimage"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    base, _ = BUILDERS[request.param]
    return Engine(choose_place("cpu")).base(base(tmp_path_factory.mktemp(request.param) / "base"))


def predicted(family: Family, rows: int) -> Tensor:
    text = family.bind(family.encode_prompt("a red sphere"), Drawing(SIDE, SIDE, 4.0))
    x = torch.randn((1, *family.latent_shape(SIDE, SIDE)), generator=torch.Generator().manual_seed(0)).expand(rows, -1, -1, -1)
    with torch.inference_mode():
        return family.predict(x, torch.tensor(500.0), Text.rows([text] * rows), None)


def without(family: Family, skip: SkipLayers, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What a network says from which the blocks were taken out."""
    gone, network = skipped_blocks(family, skip), family.networks()["transformer"]
    with monkeypatch.context() as patch:
        for name in family.skippable:
            patch.setitem(network._modules, name, nn.ModuleList(block for block in getattr(network, name) if block not in gone))
        return predicted(family, 1)


@pytest.mark.parametrize("last", [False, True])
def test_blocks_that_are_passed_by_might_as_well_not_be_there(last: bool, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    count = sum(len(getattr(family.networks()["transformer"], name)) for name in family.skippable)
    skip = SkipLayers(blocks=(0, count - 1 if last else 1))
    with passed_by(skipped_blocks(family, skip), range(1, 3)):
        found = predicted(family, 4)
    whole, pruned = predicted(family, 1), without(family, skip, monkeypatch)
    assert (whole - pruned).abs().max() > 1e-3
    for row, expected in zip(found, (whole, pruned, pruned, whole), strict=True):
        torch.testing.assert_close(row, expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predicted(family, 1), whole, rtol=0, atol=0)  # every block is as it was


def test_its_window_is_that_of_diffusers() -> None:
    skip = SkipLayers(start=0.01, end=0.2)
    assert [step for step in range(28) if skips(skip, step, 28)] == [1, 2, 3, 4, 5]
    assert [step for step in range(10) if skips(skip, step, 10)] == [1]
    assert not any(skips(skip.model_copy(update={"scale": 0.0}), step, 28) for step in range(28))


def test_both_ways_of_being_weaker_pull_by_their_own_scales() -> None:
    random = torch.Generator().manual_seed(0)
    text = Text(torch.zeros((1, 1, 1)))
    negative, one, other, one_skipped, other_skipped, one_broken, other_broken = torch.randn((7, 2, 4, 8, 8), generator=random)
    branches = Branches(text, (text, text), (1.5, 0.5), skipped=True, perturbed=True)
    out = torch.cat([negative, one, other, one_skipped, other_skipped, one_broken, other_broken])
    got, _ = branches.guided(out, Guidance(scale=3.0, skipped=2.0, perturbed=4.0))
    expected = negative + 4.5 * (one - negative) + 1.5 * (other - negative)
    expected = expected + 3.0 * (one - one_skipped) + other - other_skipped + 6.0 * (one - one_broken) + 2.0 * (other - other_broken)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_equal_blocks_are_an_equal_request_however_they_are_written() -> None:
    assert SkipLayers.model_validate({"blocks": "9 7;8 7"}) == SkipLayers() == SkipLayers(blocks=(8, 9, 7))
