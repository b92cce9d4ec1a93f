"""`limn train CONFIG [key=value …]`: from a YAML file to a ControlNet folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import PartialState
from diffusers import ControlNetModel
from pydantic import Field, ValidationError
from torch import Tensor

from core.errors import BadModel, BadRequest
from core.files import publish
from core.request import Frozen, explain
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine, resolve
from pipelines.families.sd import StableDiffusion
from pipelines.family import Place
from pipelines.loading import load_part
from training import encode
from training.config import TrainConfig
from training.controlnet import HINT_CHANNELS, ControlNetTask, new_controlnet
from training.data import DataConfig, Loader, read_pairs
from training.objectives import Objective, ObjectiveConfig
from training.trainer import OnStep, Run, train


class ControlNetConfig(Frozen):
    """Everything that determines a ControlNet's training."""

    base: str = Field("toyland", description="'toyland', a diffusers folder or a hub id; stays as it is")
    init: Path | None = Field(None, description="ControlNet folder to start from; default: a silent copy of the base's encoder")
    hint_channels: tuple[int, ...] = Field(HINT_CHANNELS, min_length=2, max_length=6, description="widths of the hint encoder")
    data: DataConfig
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    caption_dropout: float = Field(0.5, ge=0.0, le=1.0, description="share of captions replaced by the empty one, drawn at each step")
    cache: Path | None = Field(None, description="folder for moments and text embeddings; default: `cache` in the dataset's folder")
    cache_batch: int = Field(16, ge=1, le=1024, description="pictures encoded at once while the cache is built")
    weights: Literal["fp32", "fp16"] = Field("fp32", description="precision of the finished folder")
    train: TrainConfig


def read_config(path: Path, overrides: Sequence[str] = ()) -> ControlNetConfig:
    """A YAML file with `key=value` overrides, dots leading inwards: `train.steps=500`.

    Raises:
        BadRequest: one line that names what is wrong.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"config {str(path)!r} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"config {str(path)!r} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"config {str(path)!r} holds no keys: see `limn train --help`")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BadRequest(f"override {override!r} is not key=value, as in train.steps=500")
        place: dict[str, Any] = values
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise BadRequest(f"override {override!r}: {name!r} holds a value, not keys")
        place[last] = yaml.safe_load(text)
    try:
        return ControlNetConfig.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"config {str(path)!r}: {explain(error)}") from None


def main(path: Path, overrides: Sequence[str] = ()) -> Run:
    """What `limn train` calls."""
    return train_controlnet(read_config(path, overrides))


def train_controlnet(config: ControlNetConfig, on_step: OnStep | None = None) -> Run:
    """Trains a ControlNet and publishes it as the diffusers folder `<train.out>/weights`. Started again, it goes on.

    Raises:
        BadRequest, BadModel, BadImage, Mismatch: something given is wrong; nothing was trained.
        Cancelled: as `trainer.train`.
    """
    state = PartialState(cpu=config.train.device == "cpu")
    task = build_task(config, state)
    if state.is_main_process:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        publish(config.train.out / "config.yaml", text.encode())
    return train(task, config.train, on_step)


def build_task(config: ControlNetConfig, state: PartialState) -> ControlNetTask:
    """The task that a config describes, its cache built. Every process of a run calls this; each builds its share."""
    pairs = read_pairs(config.data)
    folder = config.cache or (config.data.folder if config.data.folder.is_dir() else config.data.folder.parent) / "cache"
    with state.main_process_first():
        sizes = encode.sizes_of(config.data, pairs, folder / "contents.json")
    loader = Loader(config.data, sizes)
    loader.check(pairs)
    base = _base(config.base, Place(state.device, torch.float32))
    parts = {part: encode.hashes(base.checkpoint.path / part) for part in ("text_encoder", "tokenizer", "vae")}
    texts = encode.texts(
        folder,
        [pair.caption for pair in pairs],
        lambda captions: _text_rows(base, captions),
        {"encoder": parts["text_encoder"], "tokenizer": parts["tokenizer"]},
    )
    moments = encode.moments(folder, pairs, loader, base.vae, {"encoder": parts["vae"]}, config.cache_batch)
    conditions = encode.conditions(folder, pairs, loader) if config.data.extract else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # the hint encoder's first weights
        net = new_controlnet(base.unet, base.cell_px, config.hint_channels) if config.init is None else load_controlnet(base, config.init)
    return ControlNetTask(
        net=net,
        unet=base.unet,
        objective=Objective(base.path, base.parameterisation, config.objective),
        pairs=pairs,
        loader=loader,
        moments=moments,
        texts=texts,
        conditions=conditions,
        empty_LD=_text_rows(base, [""])[0],
        scaling_factor=float(base.vae.config.scaling_factor),
        caption_dropout=config.caption_dropout,
        half=config.weights == "fp16",
        name=f"controlnet-{config.data.condition}",
    )


def load_controlnet(base: StableDiffusion, folder: Path) -> ControlNetModel:
    """A finished ControlNet to train further.

    Raises:
        BadModel, Mismatch: it is none, is damaged, or was made for another base.
    """
    base.check_control(open_checkpoint(folder))
    net: ControlNetModel = load_part(ControlNetModel, folder, base.place).requires_grad_(True)
    return net


def _base(name: str, place: Place) -> StableDiffusion:
    base = Engine(place).base(resolve(name))
    if not isinstance(base, StableDiffusion):
        raise BadModel(f"base {name!r} is of family {base.name!r}; ControlNets are trained for Stable Diffusion 1.x and 2.x")
    return base


def _text_rows(base: StableDiffusion, captions: Sequence[str]) -> Tensor:
    return torch.cat([base.encode_prompt(caption).tokens_BLD for caption in captions]).clone()
