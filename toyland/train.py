"""Rebuilds the embedded model from nothing: dataset, autoencoder, base, ControlNets, estimators, package.

Every stage runs in processes of its own (one per core or GPU, through torchrun), writes checkpoints into `RUN/<stage>` and publishes its
weights when it is done. Starting again goes on where the last run stopped; a finished stage is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from core.errors import Cancelled, LimnError, unknown_name
from core.files import publish_folder
from toyland import dataset
from toyland.recipe import RECIPES

MODELS = Path(__file__).resolve().parent.parent / "models" / "toyland"
STAGES = (
    "dataset",
    "autoencoder_half",
    "autoencoder",
    "latents",
    "base",
    "binding",
    "pipeline",
    "controlnet:canny",
    "controlnet:depth",
    "controlnet:pose",
    "estimator-depth",
    "estimator-pose",
    "package",
)


def rebuild(
    run: Path,
    recipe: str = "cpu",
    *,
    models: Path = MODELS,
    processes: int | None = None,
    only: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Runs every stage that is not done yet, or `only` one.

    processes: per stage; default one per core, or one per GPU. models: where the packaged folders go; what is there is replaced.

    Raises:
        BadRequest: an unknown stage or recipe.
        Cancelled: stopped by Ctrl-C; the next call goes on.
        LimnError: a stage failed; its log has been printed.
    """
    if recipe not in RECIPES:
        raise unknown_name("recipe", recipe, RECIPES)
    if only is not None and only not in STAGES:
        raise unknown_name("stage", only, STAGES)
    for stage in (only,) if only else STAGES:
        if stage == "dataset":
            dataset.build(run / "dataset", RECIPES[recipe].scenes, on_progress=lambda done, of: say(f"dataset: {done} of {of} scenes"))
        elif stage == "pipeline":
            assemble(run, run / "pipeline")
        elif stage == "package":
            package(run, models)
            say(f"package: {models}")
        elif stage == "latents":
            _launch(["-m", "toyland.stages", "latents", str(run)], stage)
        elif (run / stage.replace(":", "-") / "weights").is_dir():
            say(f"{stage}: done before")
        else:
            count = str(processes or _devices())
            _launch(["-m", "torch.distributed.run", "--nproc_per_node", count, "-m", "toyland.stages", stage, str(run), recipe], stage)


def assemble(run: Path, folder: Path) -> None:
    """Writes autoencoder, text encoder, UNet and scheduler as one Stable Diffusion folder in fp16."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    base = run / "binding" / "weights"
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(base / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(base / "unet"),
        scheduler=DDIMScheduler.from_pretrained(base / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16)
    _replace(folder, partial(_save_anonymously, pipeline.save_pretrained))


def package(run: Path, models: Path) -> None:
    """Writes what ships, in fp16: `base`, `controlnet-<kind>` for every kind that is trained, and the estimators."""
    import torch
    from diffusers import ControlNetModel

    assemble(run, models / "base")
    for kind in ("canny", "depth", "pose"):
        trained = run / f"controlnet-{kind}" / "weights"
        if trained.is_dir():
            net = ControlNetModel.from_pretrained(trained).to(torch.float16)
            _replace(models / f"controlnet-{kind}", partial(_save_anonymously, net.save_pretrained))
    for kind in ("depth", "pose"):
        trained = run / f"estimator-{kind}" / "weights"
        if trained.is_dir():
            _replace(models / f"estimator-{kind}", partial(shutil.copytree, trained, dirs_exist_ok=True))


def _save_anonymously(save: Callable[[Path], object], folder: Path) -> None:
    """Saves, and takes out of every config the folder it was loaded from, which nobody else has."""
    save(folder)
    for config in folder.rglob("*.json"):
        values = json.loads(config.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _replace(folder: Path, writer: Callable[[Path], None]) -> None:
    """Publishes a folder in place of an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        publish_folder(folder, writer)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or os.cpu_count() or 1


def _launch(arguments: list[str], stage: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # one thread a process: two processes of two threads on two cores crawl
    code = subprocess.run([sys.executable, *arguments], env=environment, check=False).returncode
    if code in (130, -2):
        raise Cancelled(f"{stage}: stopped; the same command goes on from its last checkpoint")
    if code:
        raise LimnError(f"{stage}: failed with exit code {code}; see the lines above, then run the same command again to go on")
