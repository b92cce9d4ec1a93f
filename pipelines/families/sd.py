"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet with cross-attention, ControlNets that add to its skip connections.

Epsilon and v-prediction. toyland is of this family. Source: Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models,
2022; Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models, 2023.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.errors import BadModel, Mismatch
from pipelines.checkpoint import Checkpoint, need
from pipelines.family import Family, Hint, Place, Residuals, Text
from pipelines.images import condition_to_tensor
from pipelines.loading import quiet
from pipelines.parameterisation import Path, parameterisation
from pipelines.prompt import Wording

# A ControlNet is a copy of the base's encoder; where these differ its residuals have no place to go.
_SHARED = ("in_channels", "block_out_channels", "layers_per_block", "down_block_types")


class StableDiffusion(Family):
    """A loaded checkpoint; see `pipelines.family.Family`. Residuals go to "skips": the skip connections, and the middle last."""

    name: ClassVar[str] = "sd"
    title: ClassVar[str] = "Stable Diffusion 1.x or 2.x"
    weight_parts: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder")

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place)
        self.unet, self.vae = parts["unet"], parts["vae"]
        self.text_encoder, self.tokenizer = parts["text_encoder"], parts["tokenizer"]
        self.path = Path.from_scheduler_config(scheduler)
        self.parameterisation = parameterisation(str(scheduler.get("prediction_type", "epsilon")))
        self.steps_offset = int(scheduler.get("steps_offset", 0))
        self.end_on_first = not scheduler.get("set_alpha_to_one", True)
        self.cell_px = 2 ** (len(self.vae.config.block_out_channels) - 1)

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
        _check_parts(checkpoint, parts)
        model = cls(checkpoint, place, parts, checkpoint.config("scheduler"))
        if model.parameterisation.output == "epsilon" and float(model.path.alphas_T[-1]) == 0.0:
            raise Mismatch(
                f"scheduler of {str(checkpoint.path)!r}: rescale_betas_zero_snr ends in pure noise, where epsilon says nothing; "
                "use v-prediction"
            )
        return model

    def networks(self) -> Mapping[str, nn.Module]:
        """See `Family.networks`."""
        return {"unet": self.unet, "vae": self.vae, "text_encoder": self.text_encoder}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels."""
        return int(self.unet.config.in_channels), height // self.cell_px, width // self.cell_px

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """The prompt's token states (1, L, D)."""
        prompt = wording.text
        length = self.tokenizer.model_max_length
        inputs = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        with quiet():  # a long prompt is reported in `dropped`
            ids = self.tokenizer(prompt).input_ids
        dropped = self.tokenizer.decode(ids[length - 1 : -1]).strip() if len(ids) > length else ""
        mask = inputs.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        mask = mask.to(self.place.device) if mask is not None else None
        states = self.text_encoder(inputs.input_ids.to(self.place.device), attention_mask=mask)
        return Text(states[0].to(self.place.dtype), dropped=dropped)

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ControlNetModel.
            Mismatch: it was made for another base.
        """
        where, config = str(checkpoint.path), checkpoint.config("")
        kind = config.get("_class_name")
        if kind != "ControlNetModel":
            raise BadModel(f"{where!r} is {kind or 'of an unknown class'}, not a ControlNetModel: give a ControlNet's folder")
        width, base_width = config.get("cross_attention_dim", 1280), self.unet.config.cross_attention_dim
        if width != base_width or config.get("addition_embed_type") is not None:
            family = "an SDXL ControlNet" if config.get("addition_embed_type") is not None else f"for cross-attention width {width}"
            raise Mismatch(
                f"ControlNet {where!r} is {family}, the base model {str(self.checkpoint.path)!r} has width {base_width}: "
                "use a ControlNet trained for this base (width 768: SD 1.x; 1024: SD 2.x)"
            )
        for key in _SHARED:
            if key in config and _plain(config[key]) != _plain(self.unet.config[key]):
                raise Mismatch(
                    f"ControlNet {where!r} has {key} {_plain(config[key])}, the base model {_plain(self.unet.config[key])}: "
                    "use a ControlNet trained for this base"
                )

    def load_control(self, checkpoint: Checkpoint) -> "LoadedControlNet":
        """The ControlNet, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import ControlNetModel

        self.check_control(checkpoint)
        return LoadedControlNet(checkpoint.network(ControlNetModel, "", self.place), self.place)

    @torch.inference_mode()
    def prepare(self, net: "LoadedControlNet", hint: Hint) -> "SteeredControlNet":
        """A ControlNet with its map; the hint is embedded here, once."""
        return SteeredControlNet(net, net.embed(condition_to_tensor(hint.map_HWC)[None]))

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The UNet's output for noisy latents at timestep t, in x's dtype."""
        skips = residuals["skips"] if residuals else None
        out: Tensor = self.unet(
            x_BCHW.to(self.place.dtype),
            t,
            encoder_hidden_states=text.tokens_BLD,
            down_block_additional_residuals=skips[:-1] if skips else None,
            mid_block_additional_residual=skips[-1] if skips else None,
            return_dict=False,
        )[0]
        return out.to(x_BCHW.dtype)


class LoadedControlNet:
    """A ControlNet whose hint encoder has been taken out, so that it runs once a picture instead of at every step."""

    def __init__(self, net: Any, place: Place) -> None:
        self.net, self.place = net, place
        self.hint_encoder: nn.Module = net.controlnet_cond_embedding
        self.flipped = net.config.controlnet_conditioning_channel_order == "bgr"
        net.controlnet_cond_embedding = nn.Identity()

    def embed(self, map_BCHW: Tensor) -> Tensor:
        """The hint's embedding (B, C, H, W) of maps in [0, 1]."""
        pixels = map_BCHW.to(self.place.device, self.place.dtype)
        embedding: Tensor = self.hint_encoder(pixels.flip(1) if self.flipped else pixels)
        # The network turns the channels of whatever it is given as a hint; turned twice they are as they were.
        return embedding.flip(1) if self.flipped else embedding


@dataclass(frozen=True, eq=False)
class SteeredControlNet:
    """A ControlNet with one map; see `pipelines.family.PreparedControl`."""

    loaded: LoadedControlNet
    hint_BCHW: Tensor

    @property
    def positive_only(self) -> bool:
        """Pooled ControlNets (shuffle) are made to steer the prompt's half of guidance alone."""
        return bool(self.loaded.net.config.global_pool_conditions)

    @property
    def levels(self) -> int:
        """Skip connections, and the middle."""
        return len(self.loaded.net.controlnet_down_blocks) + 1

    @property
    def patch(self) -> int:
        """Residuals are feature maps."""
        return 1

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add to the UNet's skip connections, outermost first, and to its middle, last; unscaled."""
        down, middle = self.loaded.net(
            x_BCHW.to(self.loaded.place.dtype),
            t,
            encoder_hidden_states=text.tokens_BLD,
            controlnet_cond=self.hint_BCHW,
            return_dict=False,
        )
        return {"skips": [*down, middle]}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    unet, vae, text_encoder, tokenizer = parts["unet"].config, parts["vae"].config, parts["text_encoder"].config, parts["tokenizer"]
    where = f"model {str(checkpoint.path)!r}"
    if unet.in_channels != vae.latent_channels:
        raise Mismatch(
            f"{where}: the UNet takes {unet.in_channels} channels, the autoencoder makes {vae.latent_channels}; "
            "use a text-to-image checkpoint (inpainting UNets are not supported)"
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise Mismatch(
            f"{where}: the UNet reads text of width {unet.cross_attention_dim}, the text encoder writes {text_encoder.hidden_size}"
        )
    if len(tokenizer) > text_encoder.vocab_size or tokenizer.model_max_length > text_encoder.max_position_embeddings:
        raise Mismatch(
            f"{where}: the tokenizer has {len(tokenizer)} tokens and length {tokenizer.model_max_length}, the text encoder takes "
            f"{text_encoder.vocab_size} and {text_encoder.max_position_embeddings}"
        )


FAMILY = StableDiffusion
