"""Captions as the base reads them, from the cache: tokens, pooled vectors, and the sizes and scales that some families are told besides."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.family import Drawing, Family, Text
from training import encode
from training.cache import Rows
from training.data import Loader, Pair
from training.pairs import Source
from training.randomness import Draws

Told = Callable[[Sequence[int]], Mapping[str, Tensor]]


@dataclass
class Texts:
    """Every sample's caption, encoded. empty: the prompt that dropped captions are replaced by, one row.

    rows: cached tensors by their name in `Text`; told: what else belongs to samples, by the family's names (SDXL's sizes).
    """

    rows: Mapping[str, Rows]
    empty: Text
    told: Told | None = None

    def batch(self, indices: list[int]) -> dict[str, Tensor]:
        """Tensors of these samples: `tokens_BLD`, and `pooled_BD`, `mask_BL` and `told.<name>` where the family has them."""
        found = {name: rows[indices] for name, rows in self.rows.items()}
        return found | {f"told.{name}": value for name, value in (self.told(indices) if self.told else {}).items()}

    def dropped(self, batch: Mapping[str, Tensor], probability: float, draws: Draws) -> Text:
        """The batch's text, each caption replaced by the empty prompt with `probability`, all encoders together, drawn at every step.

        Source: Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, algorithm 1.
        """
        drop_B = draws.uniform(name="caption_dropout") < probability

        def mixed(name: str) -> Tensor | None:
            if name not in batch:
                return None
            rows: Tensor = batch[name].float()
            drop = drop_B.reshape(-1, *(1,) * (rows.ndim - 1)).to(rows.device)
            return torch.where(drop, getattr(self.empty, name).to(rows), rows)

        tokens_BLD = mixed("tokens_BLD")
        assert tokens_BLD is not None
        extra = {name: value.to(tokens_BLD.device).expand(len(draws), *value.shape[1:]) for name, value in self.empty.extra.items()}
        extra |= {name.removeprefix("told."): value for name, value in batch.items() if name.startswith("told.")}
        return Text(tokens_BLD, mixed("pooled_BD"), mixed("mask_BL"), extra)


@dataclass
class SizesTold:
    """What SDXL is told about each picture: its size on the disk, where it was cropped, and the size it is trained at, (B, 6).

    Source: Podell et al., SDXL, 2023, section 2.2.
    """

    originals: Mapping[Source, tuple[int, int]]
    pairs: Sequence[Pair]
    loader: Loader

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`time_ids` of these samples: height and width, top and left of the crop in the scaled picture, height and width."""
        rows = []
        for index in indices:
            wide, high = self.originals[self.pairs[index].picture]
            pair = self.pairs[index]
            width, height = self.loader.size(pair)
            left, top, right, _ = self.loader.placement(pair, wide, high).box
            scale = width / (right - left)
            if pair.mirrored:  # the crop lies as far from the other edge of the mirrored picture
                left = wide - right
            rows.append([high, wide, round(top * scale), round(left * scale), height, width])
        return {"time_ids": torch.tensor(rows, dtype=torch.float32)}


def cached_texts(folder: Path, captions: Sequence[str], base: Family, drawing: Drawing, parts: Mapping[str, Any]) -> Texts:
    """The captions' rows, computed where they are missing. parts: hashes of all that they depend on."""
    nothing = base.encode_prompt("")
    empty = _owned(base.bind(nothing, drawing))
    length = empty.tokens_BLD.shape[1]
    window = length if nothing.filler is None else nothing.filler().shape[1]

    def cut(row_BL: Tensor) -> Tensor:
        """Longer captions end with each encoder's own window, as in every published training: CLIP's further ones stand before T5's."""
        further = row_BL.shape[1] - length
        return torch.cat([row_BL[:, :window], row_BL[:, window + further :]], dim=1)

    def encoded(name: str) -> Callable[[Sequence[str]], Tensor]:
        def rows(some: Sequence[str]) -> Tensor:
            found = [getattr(base.encode_prompt(caption), name) for caption in some]
            return torch.cat([row if name == "pooled_BD" else cut(row) for row in found]).clone()

        return rows

    names = [name for name in ("tokens_BLD", "pooled_BD", "mask_BL") if getattr(empty, name) is not None]
    rows = {}
    for name in names:
        # tokens keep the cache's oldest name, so that a cache stays good
        belongs_to = dict(parts) if name == "tokens_BLD" else {**parts, "of": name}
        if name != "pooled_BD" and window < length:
            belongs_to["window"] = window  # before, T5's states gave way to CLIP's further windows
        rows[name] = encode.texts(folder, captions, encoded(name), belongs_to)
    return Texts(rows, empty)


def _owned(text: Text) -> Text:
    """Copies that autograd may keep: families encode in inference mode."""
    return Text(
        text.tokens_BLD.clone(),
        None if text.pooled_BD is None else text.pooled_BD.clone(),
        None if text.mask_BL is None else text.mask_BL.clone(),
        {name: value.clone() for name, value in text.extra.items()},
    )
