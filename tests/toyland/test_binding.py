"""The stage in which base and depth ControlNet learn together: what it shows, what it teaches, what it leaves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from toyland import dataset
from toyland.base import TEXT_LENGTH, VARIANTS, BaseTask, new_tokenizer, new_unet, tokenise
from toyland.binding import SEVERAL, BindingTask
from toyland.captions import caption
from toyland.scene import sample
from training.config import TrainConfig
from training.controlnet import new_controlnet
from training.randomness import Draws
from training.trainer import train

SCENES = 8
WIDTH = 32


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.build(folder, SCENES, seed=0, workers=1)
    return folder


@pytest.fixture
def task(scenes: Path) -> BindingTask:
    torch.manual_seed(0)
    captions = [caption(sample(seed), variant) for seed in range(SCENES) for variant in range(VARIANTS)]
    tokenizer = new_tokenizer(captions)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
        )
    )
    sizes = {"block_out_channels": (WIDTH,) * 3, "cross_attention_dim": WIDTH, "attention_head_dim": 1}
    unet = UNet2DConditionModel.from_config({**new_unet().config, **sizes})
    ids = np.array(tokenise(tokenizer, captions), np.int32).reshape(SCENES, VARIANTS, TEXT_LENGTH)
    moments = np.random.default_rng(0).standard_normal((SCENES, 16, 16, 16)).astype(np.float16)
    base = BaseTask(unet, text_encoder, tokenizer, moments, ids)
    return BindingTask(base, new_controlnet(unet, hint_channels=(4, 4, 8, 8)), scenes)


def test_scenes_of_several_objects_are_shown_more_often(task: BindingTask, scenes: Path) -> None:
    times = np.bincount(task.shown, minlength=SCENES)
    assert [SEVERAL if len(row["things"]) > 1 else 1 for row in dataset.read_rows(scenes)] == times.tolist()
    assert len(task) == times.sum() > SCENES


def test_the_gradient_reaches_base_and_controlnet(task: BindingTask) -> None:
    counters = range(4)
    loss, metrics = task.loss(task.batch(list(counters)), Draws(0, counters))
    loss.backward()
    # the text a ControlNet reads reaches nothing while its zero convolutions are zero, but the base's own attention does
    for module in (task.base.unet.conv_in, task.base.unet.conv_out, task.base.text_encoder.get_input_embeddings()):
        assert module.weight.grad is not None
        assert module.weight.grad.abs().sum() > 0
    assert all(conv.weight.grad.any() for conv in (*task.net.controlnet_down_blocks, task.net.controlnet_mid_block))
    assert 0 <= float(metrics["object_early"]) < 20


def test_what_it_leaves_is_a_base_and_a_controlnet(task: BindingTask, tmp_path: Path) -> None:
    train(task, TrainConfig(out=tmp_path, steps=2, batch_size=4, learning_rate=1e-3, device="cpu"))
    weights = tmp_path / "weights"
    unet = UNet2DConditionModel.from_pretrained(weights / "unet")
    net = ControlNetModel.from_pretrained(weights / "controlnet")
    text_encoder = CLIPTextModel.from_pretrained(weights / "text_encoder")
    assert unet.config.cross_attention_dim == net.config.cross_attention_dim == text_encoder.config.hidden_size
    assert all(conv.weight.any() for conv in (*net.controlnet_down_blocks, net.controlnet_mid_block))
