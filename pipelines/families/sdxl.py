"""Stable Diffusion XL: a larger UNet that reads two CLIP text encoders and is told the picture's size and crop. Epsilon and v-prediction.

The refiner is of this family too: it has the second encoder alone, and is told an aesthetic score instead of the target size.
Source: Podell et al., SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis, 2023.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from core.errors import Mismatch
from pipelines.checkpoint import Checkpoint, need
from pipelines.clip import Layer, count_windows, encode_windows
from pipelines.family import Drawing, Place, Text
from pipelines.prompt import EMPTY, Wording
from pipelines.unet import UNetFamily

# What the refiner is told that a good picture and the negative prompt's are worth, of ten. Source: Stability AI, generative-models.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
_ENCODERS = ("text_encoder", "text_encoder_2")


class StableDiffusionXL(UNetFamily):
    """A loaded checkpoint; see `pipelines.unet.UNetFamily`.

    scored: the UNet is told an aesthetic score. zeroed: an empty negative prompt is zeros, not what the encoders say of it.
    """

    name: ClassVar[str] = "sdxl"
    title: ClassVar[str] = "Stable Diffusion XL"
    weight_parts: ClassVar[tuple[str, ...]] = ("unet", "vae", *_ENCODERS)
    clip_layer: ClassVar[Layer | None] = "penultimate"

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        unet, pooled = self.unet.config, int(parts["text_encoder_2"].config.projection_dim)
        told = int(unet.projection_class_embeddings_input_dim) - pooled
        each = int(unet.addition_time_embed_dim)
        if told not in (5 * each, 6 * each):
            raise Mismatch(
                f"model {str(checkpoint.path)!r}: beside a pooled prompt of width {pooled} the UNet reads {told} numbers, where sizes take "
                f"{6 * each} and an aesthetic score {5 * each}: use the text encoder that belongs to it"
            )
        self.scored = told == 5 * each
        self.zeroed = bool(checkpoint.settings.get("force_zeros_for_empty_prompt", not self.scored))

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A UNet2DConditionModel read by a CLIPTextModelWithProjection as the second of two CLIP text encoders, or as the only one."""
        classes = checkpoint.classes
        return (
            classes.get("unet") == "UNet2DConditionModel"
            and classes.get("text_encoder_2") == "CLIPTextModelWithProjection"
            and classes.get("text_encoder") in (None, "CLIPTextModel")
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "StableDiffusionXL":
        """See `Family.load`. An autoencoder that says it overflows in half precision computes in single."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        both = "text_encoder" in checkpoint.classes
        encoders, tokenizers = (_ENCODERS, ("tokenizer", "tokenizer_2")) if both else (_ENCODERS[1:], ("tokenizer_2",))
        need(checkpoint, ("unet", "vae", *encoders, *tokenizers, "scheduler"), cls.title)
        fragile = place.dtype == torch.float16 and checkpoint.config("vae").get("force_upcast", False)
        kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        parts = {
            "unet": checkpoint.network(UNet2DConditionModel, "unet", place),
            "vae": checkpoint.network(AutoencoderKL, "vae", replace(place, dtype=torch.float32) if fragile else place),
            **{name: checkpoint.network(kinds[name], name, place) for name in encoders},
            **{name: checkpoint.tokenizer(CLIPTokenizer, name) for name in tokenizers},
        }
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """Both encoders' token states side by side (1, L, D), and the second one's pooled prompt (1, D)."""
        encoders = [(self.parts[name], self.parts[name.replace("text_encoder", "tokenizer")]) for name in _ENCODERS if name in self.parts]
        windows = max(count_windows(tokenizer, wording, self.inversions) for _, tokenizer in encoders)
        options: dict[str, Any] = {"clip_skip": clip_skip, "layer": self.clip_layer, "windows": windows, "inversions": self.inversions}
        encoded = [encode_windows(encoder, tokenizer, wording, **options) for encoder, tokenizer in encoders]
        pooled = encoded[-1].pooled_1D
        return Text(
            torch.cat([one.tokens_1LD for one in encoded], dim=-1).to(self.place.dtype),
            pooled_BD=None if pooled is None else pooled.to(self.place.dtype),
            empty=not wording.text.strip(),
            filler=lambda: self.encode_prompt(EMPTY, clip_skip).tokens_BLD,
        )

    def bind(self, text: Text, drawing: Drawing) -> Text:
        """The text with the picture's size, as a picture that was neither cropped nor resized; an empty negative prompt becomes zeros."""
        size = (float(drawing.height), float(drawing.width))
        score = NEGATIVE_AESTHETIC_SCORE if drawing.negative else AESTHETIC_SCORE
        told = (*size, 0.0, 0.0, score) if self.scored else (*size, 0.0, 0.0, *size)
        ids = torch.tensor([told], device=self.place.device).expand(text.tokens_BLD.shape[0], -1)
        bound = replace(text, extra={**text.extra, "time_ids": ids})
        if not (drawing.negative and text.empty and self.zeroed):
            return bound
        tokens, pooled = torch.zeros_like(text.tokens_BLD), text.pooled_BD
        return replace(
            bound,
            tokens_BLD=tokens,
            pooled_BD=None if pooled is None else torch.zeros_like(pooled),
            filler=lambda: tokens[:1],
        )


FAMILY = StableDiffusionXL
