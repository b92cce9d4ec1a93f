"""What Stable Diffusion 1.x, 2.x and XL share: a UNet with cross-attention, and the ControlNets and T2I-Adapters that steer it.

Residuals go to "skips" (the skip connections, the middle last), "features" (inside the encoder's blocks) and "channels" (beside the
latents: what inpainting models are told). Axes: B rows, C channels, H and W pixels or latent cells.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from core.control import Image
from core.errors import Mismatch
from pipelines import vae
from pipelines.checkpoint import Checkpoint
from pipelines.controlnet import LoadedControlNet, LoadedUnion, SteeredControlNet, added_conditions
from pipelines.edm import Edm
from pipelines.family import Family, Hint, Place, Residuals, Text
from pipelines.images import picture_to_tensor
from pipelines.inversion import Inversions
from pipelines.kinds import wrong_kind
from pipelines.parameterisation import Parameterisation, Path, parameterisation
from pipelines.stacks import Stack
from pipelines.t2i_adapter import LoadedAdapter, SteeredAdapter, check_adapter

# A ControlNet is a copy of the base's encoder; where these differ its residuals have no place to go.
_SHARED = ("block_out_channels", "layers_per_block", "down_block_types")
# Published at this size and beyond; smaller models are somebody's own, and their settings are too.
_PUBLISHED_PX = 512
_PUBLISHED_EDM = {"guidance_scale": 3.0}
_PUBLISHED = {"steps": 25, "guidance_scale": 7.0, "sampler": "dpmpp_2m", "schedule": "karras"}


class UNetFamily(Family):
    """A loaded checkpoint; see `pipelines.family.Family`. inversions: words of prompts that have embeddings of their own."""

    perturbed_layers: ClassVar[str] = r"^mid_block\..*attn1$"
    inversions: Inversions | None = None

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place)
        self.parts = dict(parts)
        self.unet, self.vae = parts["unet"], parts["vae"]
        self.path = Path.from_scheduler_config(scheduler)
        self.edm = Edm.of(scheduler)
        self.parameterisation = Parameterisation("v") if self.edm else parameterisation(str(scheduler.get("prediction_type", "epsilon")))
        if self.edm is not None and self.edm.data != 1.0:  # its latents are wider or narrower than the path's
            self.vae.register_to_config(scaling_factor=float(self.vae.config.scaling_factor) / self.edm.data)
        self.steps_offset = int(scheduler.get("steps_offset", 0))
        self.end_on_first = not scheduler.get("set_alpha_to_one", True)
        self.cell_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._everywhere: dict[tuple[int, int], Residuals] = {}
        if self.parameterisation.output == "epsilon" and float(self.path.alphas_T[-1]) == 0.0:
            raise Mismatch(
                f"scheduler of {str(checkpoint.path)!r}: rescale_betas_zero_snr ends in pure noise, where epsilon says nothing; "
                "use v-prediction"
            )
        self._check_widths()

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The size that the UNet was made for, and for published models what people draw with."""
        side = int(self.unet.config.sample_size or 0) * self.cell_px
        published = _PUBLISHED | (_PUBLISHED_EDM if self.edm else {}) if side >= _PUBLISHED_PX else {}
        return ({"width": side, "height": side} if side else {}) | published

    @property
    def inpaints(self) -> bool:
        """Whether the UNet reads the mask and the masked picture beside the latents."""
        return int(self.unet.config.in_channels) == 2 * int(self.vae.config.latent_channels) + 1

    @classmethod
    def lends_nothing(cls, control: Checkpoint) -> bool:
        """A variant may be made of its base's weights; the published kinds are networks of their own."""
        return control.classes.get("") in ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter")

    def networks(self) -> Mapping[str, nn.Module]:
        """See `Family.networks`."""
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels."""
        return int(self.vae.config.latent_channels), height // self.cell_px, width // self.cell_px

    def inpaint(self, image_HWC: Image, mask_HW: NDArray[np.uint8]) -> Residuals | None:
        """The mask and the latents of the picture without what it hides, (1, 1 + C, H, W), for the UNets that read them.

        Source: Rombach et al., 2022; runwayml/stable-diffusion-inpainting.
        """
        if not self.inpaints:
            return None
        mask_BCHW = torch.from_numpy((mask_HW >= 128).astype(np.float32))[None, None]
        rest = vae.encode_pixels(self.vae, picture_to_tensor(image_HWC)[None] * (1.0 - mask_BCHW), self.place)
        cells = F.interpolate(mask_BCHW, rest.shape[-2:], mode="nearest").to(rest.device)
        return {"channels": [torch.cat([cells, rest], dim=1)]}

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet or T2I-Adapter fits this model, from its configuration alone.

        Raises:
            BadModel: it is neither.
            Mismatch: it was made for another base.
        """
        kind = _kind(checkpoint)
        if kind == "T2IAdapter":
            check_adapter(checkpoint, self.unet.config, self.cell_px, str(self.checkpoint.path))
        elif kind is None:
            raise wrong_kind(checkpoint, self.checkpoint, "ControlNetModel", self.title)
        else:
            self._check_controlnet(checkpoint)

    def _check_controlnet(self, checkpoint: Checkpoint) -> None:
        where, base, config = str(checkpoint.path), str(self.checkpoint.path), checkpoint.config("")
        if self.edm is not None:
            raise Mismatch(
                f"ControlNet {where!r} is told timesteps, the base model {base!r} is of the EDM kind and told noise levels: "
                "use a T2I-Adapter, or a base of noise or velocity prediction"
            )
        width, own = config.get("cross_attention_dim", 1280), self.unet.config
        if width != own.cross_attention_dim or config.get("addition_embed_type") != own.addition_embed_type:
            told = config.get("addition_embed_type") is not None
            family = "an SDXL ControlNet" if told else f"for cross-attention width {width}"
            raise Mismatch(
                f"ControlNet {where!r} is {family}, the base model {base!r} has width {own.cross_attention_dim}: "
                "use a ControlNet trained for this base (width 768: SD 1.x; 1024: SD 2.x; 2048: SDXL)"
            )
        if config.get("conditioning_channels", 3) != 3 and Stack.of(config) is None:
            raise Mismatch(
                f"ControlNet {where!r} reads {config['conditioning_channels']} channels of conditions and does not say of which kinds: "
                "name them in its config.json as limn_kinds, with limn_channels"
            )
        wanted = _wanted(config, own) | {"in_channels": self.vae.config.latent_channels}
        for key, value in wanted.items():
            if key in config and _plain(config[key]) != _plain(value):
                raise Mismatch(
                    f"ControlNet {where!r} has {key} {_plain(config[key])}, the base model {_plain(value)}: "
                    "use a ControlNet trained for this base"
                )

    def load_control(self, checkpoint: Checkpoint) -> LoadedControlNet | LoadedAdapter:
        """The ControlNet or adapter, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import ControlNetModel, ControlNetUnionModel, T2IAdapter

        from pipelines.variants import LimnControlNetModel, load_variant

        self.check_control(checkpoint)
        match _kind(checkpoint):
            case "T2IAdapter":
                return LoadedAdapter(checkpoint.network(T2IAdapter, "", self.place), self.place)
            case "ControlNetUnionModel":
                return LoadedUnion(checkpoint.network(ControlNetUnionModel, "", self.place), self.place)
            case "LimnControlNetModel":
                return LoadedControlNet(load_variant(LimnControlNetModel, checkpoint, self.checkpoint, self.place), self.place)
            case _:
                return LoadedControlNet(checkpoint.network(ControlNetModel, "", self.place), self.place)

    @torch.inference_mode()
    def prepare(self, net: LoadedControlNet | LoadedAdapter, hint: Hint) -> SteeredControlNet | SteeredAdapter:
        """A ControlNet with its map, or an adapter's features of it; all that looks at the map alone is computed here, once.

        Raises:
            Mismatch: a union ControlNet that was not made for this kind of control.
            BadRequest: a size that an adapter cannot take.
        """
        return net.prepare(hint)

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The UNet's output for noisy latents at timestep t, in x's dtype."""
        found = residuals or {}
        skips, features = found.get("skips"), found.get("features")
        told = found.get("channels") or (self._nothing_given(x_BCHW) if self.inpaints else [])
        rows = [x_BCHW, *(one.to(x_BCHW.dtype).expand(x_BCHW.shape[0], -1, -1, -1) for one in told)]
        out: Tensor = self.unet(
            torch.cat(rows, dim=1).to(self.place.dtype) if told else x_BCHW.to(self.place.dtype),
            t if self.edm is None else self.edm.told(t),
            encoder_hidden_states=text.tokens_BLD,
            added_cond_kwargs=added_conditions(text),
            down_block_additional_residuals=skips[:-1] if skips else None,
            mid_block_additional_residual=skips[-1] if skips else None,
            down_intrablock_additional_residuals=list(features) if features else None,
            return_dict=False,
        )[0]
        return out.to(x_BCHW.dtype) if self.edm is None else self.edm.sign * out.to(x_BCHW.dtype)

    def _nothing_given(self, x_BCHW: Tensor) -> Sequence[Tensor]:
        """What an inpainting UNet is told where there is no picture: everything is hidden."""
        height, width = x_BCHW.shape[-2:]
        if (height, width) not in self._everywhere:
            size = (height * self.cell_px, width * self.cell_px)
            self._everywhere[height, width] = self.inpaint(np.zeros((*size, 3), np.uint8), np.full(size, 255, np.uint8)) or {}
        return self._everywhere[height, width]["channels"]

    def _check_widths(self) -> None:
        """
        Raises:
            Mismatch: the parts of the checkpoint speak of different widths.
        """
        unet, where = self.unet.config, f"model {str(self.checkpoint.path)!r}"
        made = int(self.vae.config.latent_channels)
        if unet.in_channels not in (made, 2 * made + 1):
            raise Mismatch(
                f"{where}: the UNet takes {unet.in_channels} channels, the autoencoder makes {made}; "
                f"use a text-to-image checkpoint ({made} channels) or one for inpainting ({2 * made + 1})"
            )
        encoders = [self.parts[name].config for name in ("text_encoder", "text_encoder_2") if name in self.parts]
        written = sum(int(encoder.hidden_size) for encoder in encoders)
        if unet.cross_attention_dim != written:
            raise Mismatch(f"{where}: the UNet reads text of width {unet.cross_attention_dim}, the text encoder writes {written}")
        tokenizers = [self.parts[name] for name in ("tokenizer", "tokenizer_2") if name in self.parts]
        for tokenizer, encoder in zip(tokenizers, encoders, strict=True):
            if len(tokenizer) > encoder.vocab_size or tokenizer.model_max_length > encoder.max_position_embeddings:
                raise Mismatch(
                    f"{where}: the tokenizer has {len(tokenizer)} tokens and length {tokenizer.model_max_length}, the text encoder takes "
                    f"{encoder.vocab_size} and {encoder.max_position_embeddings}"
                )


def _kind(checkpoint: Checkpoint) -> str | None:
    """The class that a control is loaded as; None for what is no control of these families. A union network says how many types it has."""
    kind = checkpoint.classes.get("")
    if kind is not None and kind.startswith("ControlNet") and checkpoint.config("").get("num_control_type"):
        return "ControlNetUnionModel"
    return kind if kind in ("ControlNetModel", "LimnControlNetModel", "T2IAdapter") else None


def _wanted(config: Mapping[str, Any], own: Any) -> dict[str, Any]:
    """What a ControlNet's config must say beside a UNet; a variant's own widths are its own, unless they are the base's."""
    if "residual_channels" not in config:
        return {key: own[key] for key in _SHARED}
    from pipelines.variants import unet_levels

    wanted: dict[str, Any] = {"residual_channels": unet_levels(own), "layers_per_block": own["layers_per_block"]}
    if config.get("rank"):
        count = len(config["block_out_channels"])
        wanted |= {key: own[key][:count] for key in ("block_out_channels", "down_block_types")}
    return wanted


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
