"""What the base model is trained on: the moments of every picture's latents, and the tokens of every caption."""

import multiprocessing
import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from core.files import publish_folder
from toyland.arrays import packed
from toyland.base import TEXT_LENGTH, VARIANTS, new_tokenizer, tokenise
from toyland.captions import caption
from toyland.dataset import read_rows
from toyland.scene import sample

CHUNK = 500


def moments(run: Path, workers: int | None = None) -> NDArray[np.float16]:
    """(N, 2·C, h, w) mean and log-variance of the dataset's pictures, from `RUN/vae`; made once, then mapped from `RUN/latents`."""
    folder = run / "latents"
    if not folder.exists():
        images = packed(run / "dataset", "images")
        starts = range(0, len(images), CHUNK)
        processes = min(workers or os.cpu_count() or 1, len(starts))
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            encoded = np.concatenate(list(pool.imap(partial(_encode, run), starts)))
        publish_folder(folder, lambda target: np.save(target / "moments.npy", encoded))
    mapped: NDArray[np.float16] = np.load(folder / "moments.npy", mmap_mode="r")
    return mapped


def tokens(run: Path) -> tuple[CLIPTokenizer, NDArray[np.int32]]:
    """The tokenizer learnt from the dataset's captions, and its tokens (N, VARIANTS, TEXT_LENGTH); made once, in `RUN/tokens`."""
    folder = run / "tokens"
    if not folder.exists():
        seeds = [row["seed"] for row in read_rows(run / "dataset")]
        captions = [caption(sample(seed), variant) for seed in seeds for variant in range(VARIANTS)]
        tokenizer = new_tokenizer(captions)
        ids = np.array(tokenise(tokenizer, captions), np.int32).reshape(len(seeds), VARIANTS, TEXT_LENGTH)

        def write(target: Path) -> None:
            tokenizer.save_pretrained(target / "tokenizer")
            np.save(target / "tokens.npy", ids)

        publish_folder(folder, write)
    return CLIPTokenizer.from_pretrained(folder / "tokenizer"), np.load(folder / "tokens.npy", mmap_mode="r")


@torch.no_grad()
def _encode(run: Path, start: int) -> NDArray[np.float16]:
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(run / "vae")
    images = packed(run / "dataset", "images")[start : start + CHUNK]
    parts = []
    for first in range(0, len(images), 20):
        x_BCHW = torch.from_numpy(images[first : first + 20].copy()).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()
        posterior = vae.encode(x_BCHW).latent_dist
        parts.append(torch.cat([posterior.mean, posterior.logvar], 1).half())
    return torch.cat(parts).numpy()
