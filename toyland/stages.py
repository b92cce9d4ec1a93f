"""One training stage of the embedded model: `torchrun --nproc_per_node N -m toyland.stages STAGE RUN RECIPE`."""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from core.files import publish_folder
from toyland.arrays import packed
from toyland.autoencoder import AutoencoderTask, new_autoencoder, standardise
from toyland.base import BaseTask, new_text_encoder, new_unet
from toyland.latents import moments, tokens
from toyland.recipe import RECIPES
from training.trainer import Task, train


def main(stage: str, run: str, recipe_name: str) -> None:
    """Trains a stage in `RUN/<stage>`, going on from its newest checkpoint."""
    folder, recipe = Path(run), RECIPES[recipe_name]  # type: ignore[index]
    torch.manual_seed(0)
    train(_task(stage, folder), recipe.config(stage.split(":")[0], folder / stage.replace(":", "-")))


def prepare(run: Path) -> None:
    """Between the autoencoder and the base: unit latents, then the moments of all pictures and the tokens of all captions."""
    if not (run / "vae").exists():
        vae = AutoencoderKL.from_pretrained(run / "autoencoder" / "weights" / "vae")
        standardise(vae, packed(run / "dataset", "images")[:2000])
        publish_folder(run / "vae", vae.save_pretrained)
    moments(run)
    tokens(run)


def _task(stage: str, run: Path) -> Task:
    if stage == "autoencoder_half":
        return AutoencoderTask(new_autoencoder(), run / "dataset", shrink=2)
    if stage == "autoencoder":
        vae = AutoencoderKL.from_pretrained(run / "autoencoder_half" / "weights" / "vae")
        return AutoencoderTask(vae, run / "dataset")
    if stage == "base":
        tokenizer, ids = tokens(run)
        return BaseTask(new_unet(), new_text_encoder(tokenizer), tokenizer, moments(run), ids)
    raise ValueError(stage)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]))
    else:
        main(*sys.argv[1:])
