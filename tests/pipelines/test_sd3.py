"""Stable Diffusion 3 by itself: what is computed once, what its text encoders read, what it refuses, and how it does in fewer bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.checkpoint import Folder
from pipelines.families.sd3 import StableDiffusion3
from tests.pipelines import sd3_parity
from tests.pipelines.flow_parity import (
    check_batch,
    check_embedded_once,
    check_fewer_bits,
    check_misfit,
    drawn,
    host_reads,
    plan_of,
    steered,
)
from tests.pipelines.scenes import PLACE, PROMPT


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd3_parity.build(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def families(models: Path) -> dict[str, StableDiffusion3]:
    return sd3_parity.load(models)


def test_each_picture_of_a_batch_is_the_one_drawn_alone(models: Path, families: dict[str, StableDiffusion3]) -> None:
    check_batch(families["3"], steered(families["3"], models, ["plain"], mode="control"))


def test_a_map_is_encoded_and_embedded_once(models: Path, families: dict[str, StableDiffusion3]) -> None:
    check_embedded_once(families["3"], families["3"].load_control(Folder(models / "net-plain")), families["3"].vae.encoder)


def test_prompts_longer_than_a_window(families: dict[str, StableDiffusion3]) -> None:
    """CLIP reads all of it, in windows; a shorter negative prompt is filled with the empty prompt's."""
    family = families["3"]
    long = "a red sphere left of a blue cube on grass at sunset, " * 20
    text = family.encode_prompt(long)
    windows = (text.tokens_BLD.shape[1] - 256) // 77
    assert windows > 1
    assert text.tokens_BLD.shape[1] == windows * 77 + 256
    assert text.dropped  # by T5
    plan = replace(plan_of(family), positive=text)
    assert drawn(family, plan).isfinite().all()
    assert family.encode_prompt("").empty


def test_a_checkpoint_whose_t5_was_not_fetched_is_whole(models: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(models / "base-3", folder, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    family = StableDiffusion3.load(Folder(folder), PLACE)
    assert "text_encoder_3" not in family.networks()
    assert family.encode_prompt(PROMPT).tokens_BLD[:, 77:].abs().max() == 0.0
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BadModel, match=r"has no 'text_encoder_2': a Stable Diffusion 3 or 3.5 model needs transformer"):
        StableDiffusion3.load(Folder(folder), PLACE)


def test_sizes_the_transformer_cannot_draw(families: dict[str, StableDiffusion3]) -> None:
    assert families["3"].latent_shape(192, 96) == (16, 12, 24)
    for width in (72, 208):
        with pytest.raises(BadRequest, match=rf"width = {width}: this model draws in patches of 16 pixels; give a multiple up to 192"):
            families["3"].latent_shape(width, 64)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Mismatch, {"_class_name": "ControlNetModel"}, r"is a ControlNet for Stable Diffusion or SDXL, .* is Stable Diffusion 3"),
        (Mismatch, {"_class_name": "T2IAdapter"}, r"is a T2I-Adapter"),
        (BadModel, {"_class_name": "SD3Transformer2DModel"}, r"is SD3Transformer2DModel, not a SD3ControlNetModel"),
        (Mismatch, {"_class_name": "SD3ControlNetModel"}, r"has width 1152, the base model .* 32: use a ControlNet trained for this base"),
        (Mismatch, {"qk_norm": "rms_norm"}, r"has qk_norm rms_norm, the base model .* None"),
        (Mismatch, {"joint_attention_dim": 64}, r"has joint_attention_dim 64, the base model .* 48"),
        (Mismatch, {"in_channels": 4}, r"has in_channels 4, the base model .* 16"),
    ],
)
def test_controlnets_that_do_not_fit(
    kind: type[Exception], config: dict[str, Any], message: str, models: Path, tmp_path: Path, families: dict[str, StableDiffusion3]
) -> None:
    check_misfit(families["3"], models / "net-plain", tmp_path, config, (kind, message))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits(dtype: torch.dtype, models: Path, families: dict[str, StableDiffusion3]) -> None:
    check_fewer_bits(families["3"], StableDiffusion3.load(Folder(models / "base-3"), replace(PLACE, dtype=dtype)), models, bound=0.03)


def test_no_step_waits_for_the_device(models: Path, families: dict[str, StableDiffusion3]) -> None:
    assert host_reads(families["3"], steered(families["3"], models, ["plain"])[0].control) == 0
