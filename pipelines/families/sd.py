"""Stable Diffusion 1.x and 2.x: a UNet that reads one CLIP text encoder. Epsilon and v-prediction. toyland is of this family.

Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022.
"""

from typing import Any, ClassVar

import torch

from pipelines.checkpoint import Checkpoint, need
from pipelines.clip import Layer, encode_windows
from pipelines.controlnet import LoadedControlNet as LoadedControlNet
from pipelines.family import Place, Text
from pipelines.prompt import EMPTY, Wording
from pipelines.unet import UNetFamily


class StableDiffusion(UNetFamily):
    """A loaded checkpoint; see `pipelines.unet.UNetFamily`."""

    name: ClassVar[str] = "sd"
    title: ClassVar[str] = "Stable Diffusion 1.x or 2.x"
    weight_parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder")
    clip_layer: ClassVar[Layer | None] = "last"

    @property
    def text_encoder(self) -> Any:
        """The CLIP text encoder."""
        return self.parts["text_encoder"]

    @property
    def tokenizer(self) -> Any:
        """The text encoder's tokenizer."""
        return self.parts["tokenizer"]

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A UNet2DConditionModel read by one CLIPTextModel, and no second text encoder (that is SDXL)."""
        classes = checkpoint.classes
        return (
            classes.get("unet") == "UNet2DConditionModel"
            and classes.get("text_encoder") == "CLIPTextModel"
            and "text_encoder_2" not in classes
        )

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "StableDiffusion":
        """See `Family.load`."""
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        need(checkpoint, (*cls.weight_parts, "tokenizer", "scheduler"), cls.title)
        parts = {
            "unet": checkpoint.network(UNet2DConditionModel, "unet", place),
            "vae": checkpoint.network(AutoencoderKL, "vae", place),
            "text_encoder": checkpoint.network(CLIPTextModel, "text_encoder", place),
            "tokenizer": checkpoint.tokenizer(CLIPTokenizer, "tokenizer"),
        }
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """The prompt's token states (1, L, D), window by window."""
        encoded = encode_windows(self.text_encoder, self.tokenizer, wording, clip_skip=clip_skip, inversions=self.inversions)
        return Text(
            encoded.tokens_1LD.to(self.place.dtype),
            empty=not wording.text.strip(),
            filler=lambda: self.encode_prompt(EMPTY, clip_skip).tokens_BLD,
        )


FAMILY = StableDiffusion
