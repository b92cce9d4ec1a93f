"""One training stage of the embedded model: `torchrun --nproc_per_node N -m toyland.stages STAGE RUN RECIPE`."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from core.files import publish, publish_folder
from toyland.arrays import packed
from toyland.autoencoder import AutoencoderTask, new_autoencoder, standardise
from toyland.base import HINT_CHANNELS, BaseTask, new_text_encoder, new_unet
from toyland.binding import BindingTask
from toyland.dataset import read_rows
from toyland.estimators import DepthTask, PoseTask, new_depth_estimator, new_pose_estimator
from toyland.latents import moments, tokens
from toyland.recipe import RECIPES, Recipe, RecipeName
from training.controlnet import new_controlnet
from training.data import DataConfig
from training.objectives import ObjectiveConfig
from training.run import ControlNetConfig, train_controlnet
from training.trainer import Task, train

EMPTY_POSES = 0.1  # share of the scenes without a figure among those the pose ControlNet sees
SEVERAL = 2  # how often the other ControlNets see a scene of several objects for every other scene
NOISY_TIMES = {"canny": 0.0, "depth": 0.5, "pose": 0.5}  # edges are decided late, places of objects and limbs early


def main(stage: str, run: Path, name: RecipeName) -> None:
    """Trains a stage in `RUN/<stage>`, going on from its newest checkpoint."""
    recipe = RECIPES[name]
    torch.manual_seed(0)
    if stage.startswith("controlnet:"):
        train_controlnet(controlnet_config(run, stage.partition(":")[2], recipe))
    else:
        train(_task(stage, run), recipe.config(stage, run / stage))


def prepare(run: Path) -> None:
    """Between the autoencoder and the base: unit latents, then the moments of all pictures and the tokens of all captions."""
    if not (run / "vae").exists():
        vae = AutoencoderKL.from_pretrained(run / "autoencoder" / "weights" / "vae")
        standardise(vae, packed(run / "dataset", "images")[:2000])
        publish_folder(run / "vae", vae.save_pretrained)
    moments(run)
    tokens(run)
    _views(run)


def controlnet_config(run: Path, kind: str, recipe: Recipe) -> ControlNetConfig:
    """What `limn train` would be given to train this ControlNet, which starts from the one that learnt binding together with the base."""
    return ControlNetConfig(
        base=str(run / "pipeline"),
        init=run / "binding" / "weights" / "controlnet",
        data=DataConfig(folder=run / ("posed" if kind == "pose" else "several"), condition=kind),
        objective=ObjectiveConfig(noisy_times=NOISY_TIMES[kind]),
        caption_dropout=0.2,
        cache=run / "cache",
        train=recipe.config(f"controlnet-{kind}", run / f"controlnet-{kind}"),
    )


def _task(stage: str, run: Path) -> Task:
    if stage == "autoencoder_half":
        return AutoencoderTask(new_autoencoder(), run / "dataset", shrink=2)
    if stage == "autoencoder":
        vae = AutoencoderKL.from_pretrained(run / "autoencoder_half" / "weights" / "vae")
        return AutoencoderTask(vae, run / "dataset")
    if stage == "base":
        tokenizer, ids = tokens(run)
        return BaseTask(new_unet(), new_text_encoder(tokenizer), tokenizer, moments(run), ids)
    if stage == "binding":
        tokenizer, ids = tokens(run)
        trained = run / "base" / "weights"
        unet = UNet2DConditionModel.from_pretrained(trained / "unet")
        text_encoder = CLIPTextModel.from_pretrained(trained / "text_encoder")
        net = new_controlnet(unet, hint_channels=HINT_CHANNELS)
        return BindingTask(BaseTask(unet, text_encoder, tokenizer, moments(run), ids), net, run / "dataset")
    if stage == "estimator-depth":
        return DepthTask(new_depth_estimator(), run / "dataset")
    if stage == "estimator-pose":
        return PoseTask(new_pose_estimator(), run / "dataset")
    raise ValueError(f"no such stage: {stage}")


def _views(run: Path) -> None:
    """Views of the dataset for the ControlNets: `posed` has every scene with a figure and a few without, whose map is black; `several`
    has all scenes, those of several objects more than once."""
    rows = read_rows(run / "dataset")
    every = round(1 / EMPTY_POSES)
    _view(run / "posed", [row for index, row in enumerate(rows) if row["figure"] or index % every == 0], ("pose",))
    _view(run / "several", [row for row in rows for _ in range(SEVERAL if len(row["things"]) > 1 else 1)], ("canny", "depth"))


def _view(folder: Path, rows: list[dict[str, Any]], conditions: tuple[str, ...]) -> None:
    columns = ("file_name", *conditions)
    lines = [{"text": row["text"], **{column: f"../dataset/{row[column]}" for column in columns}} for row in rows]
    publish(folder / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


if __name__ == "__main__":
    if sys.argv[1] == "latents":
        prepare(Path(sys.argv[2]))
    else:
        main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])  # type: ignore[arg-type]
