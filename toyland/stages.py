"""One training stage of the embedded model: `torchrun --nproc_per_node N -m toyland.stages STAGE RUN RECIPE`."""

import sys
from pathlib import Path

from training.trainer import train


def main(stage: str, run: str, recipe_name: str) -> None:
    """Trains a stage in `RUN/<stage>`, going on from its newest checkpoint."""
    from toyland.recipe import RECIPES

    folder, recipe = Path(run), RECIPES[recipe_name]  # type: ignore[index]
    config = recipe.config(stage.split(":")[0], folder / stage.replace(":", "-"))
    train(_task(stage, folder), config)


def _task(stage: str, run: Path):
    from diffusers import AutoencoderKL

    from toyland.autoencoder import AutoencoderTask, new_autoencoder

    if stage == "autoencoder_half":
        return AutoencoderTask(new_autoencoder(), run / "dataset", shrink=2)
    if stage == "autoencoder":
        vae = AutoencoderKL.from_pretrained(run / "autoencoder_half" / "weights" / "vae")
        return AutoencoderTask(vae, run / "dataset")
    raise ValueError(stage)


if __name__ == "__main__":
    main(*sys.argv[1:])
