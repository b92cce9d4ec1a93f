"""FLUX.1: a rectified flow over packed latents, read by T5's tokens and CLIP's pooled vector.

Dev is told the guidance scale, schnell is not guided, and both may be guided by a second forward as well. Of the same family: the models
with a map in channels of their own (Canny, Depth), and Fill, which is made for inpainting.
Source: Black Forest Labs, flux, 2024; Rombach et al., 2022, for the latents; Esser et al., 2024, for the shift of the noise levels.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.control import Image
from core.errors import Mismatch
from pipelines import vae
from pipelines.checkpoint import Checkpoint, need
from pipelines.clip import encode_t5, encode_windows
from pipelines.controlnet_flux import Channels, FluxControlNet, OwnControl, Positions, told
from pipelines.controlnet_flux_lora import ControlLora, check_control_lora, is_control_lora
from pipelines.family import Drawing, Hint, Place, PreparedControl, Residuals, Text
from pipelines.flow_family import FlowFamily, width_of
from pipelines.images import picture_to_tensor
from pipelines.kinds import wrong_kind
from pipelines.prompt import Wording, plain
from pipelines.tokens import over_blocks, pack, unpack

# What the tokens hold beside the latents: nothing, a map's latents, or the masked picture's latents and the mask.
Extra = Literal["nothing", "map", "hole"]

T5_TOKENS_GUIDED, T5_TOKENS = 512, 256  # dev and schnell, as published
_WIDTHS = ("joint_attention_dim", "pooled_projection_dim")


class Flux(FlowFamily):
    """A loaded checkpoint; see `pipelines.family.Family`.

    Residuals go to "blocks/N" and "single/N", N levels for the double and the single blocks; to "cyclic/N" where a ControlNet's levels are
    dealt to the double blocks in turn; and to "channels", (B, C, H, W), for the models with channels of their own. Where nothing is said
    there (outside a control's window or region) a map's channels are zeros.
    """

    name: ClassVar[str] = "flux"
    title: ClassVar[str] = "FLUX.1"
    weight_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "text_encoder_2")
    skippable: ClassVar[tuple[str, ...]] = ("transformer_blocks", "single_transformer_blocks")
    half: ClassVar[torch.dtype] = torch.bfloat16
    residuals_shared: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        self.text_encoder, self.tokenizer = parts["text_encoder"], parts["tokenizer"]
        self.text_encoder_2, self.tokenizer_2 = parts["text_encoder_2"], parts["tokenizer_2"]
        self.guidance = "embedded" if self.transformer.config.guidance_embeds else "none"
        self.cell_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.extra = _extra_channels(checkpoint, self.transformer.config, self.vae.config, self.cell_px)
        self._positions = Positions(place)
        self._nothing_told = lru_cache(2)(self._new_nothing_told)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A FluxTransformer2DModel."""
        return checkpoint.classes.get("transformer") == "FluxTransformer2DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "Flux":
        """See `Family.load`."""
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

        need(checkpoint, (*cls.weight_parts, "tokenizer", "tokenizer_2", "scheduler"), cls.title)
        parts = {
            "transformer": checkpoint.network(FluxTransformer2DModel, "transformer", place),
            "vae": checkpoint.network(AutoencoderKL, "vae", place),
            "text_encoder": checkpoint.network(CLIPTextModel, "text_encoder", place),
            "text_encoder_2": checkpoint.network(T5EncoderModel, "text_encoder_2", place),
            "tokenizer": checkpoint.tokenizer(CLIPTokenizer, "tokenizer"),
            "tokenizer_2": checkpoint.tokenizer(T5TokenizerFast, "tokenizer_2"),
        }
        _check_parts(checkpoint, parts)
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """As the models' cards advise; a map or a hole in the channels wants more guidance."""
        common = {"width": 1024, "height": 1024, "sampler": "euler", "schedule": "trailing"}
        if self.guidance == "none":
            return common | {"steps": 4, "guidance_scale": 1.0}
        return common | {"steps": 28 if self.extra == "nothing" else 50, "guidance_scale": 3.5 if self.extra == "nothing" else 30.0}

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """T5's states (1, L, D) and CLIP's pooled vector of the first window; clip_skip has no bearing on either."""
        limit = T5_TOKENS_GUIDED if self.guidance == "embedded" else T5_TOKENS
        length = min(limit, int(self.tokenizer_2.model_max_length))
        tokens, _, dropped = encode_t5(self.text_encoder_2, self.tokenizer_2, wording, max_length=length)
        # One window holds all that the pooled vector is made of, and BREAK would end it early.
        pooled = encode_windows(self.text_encoder, self.tokenizer, plain(wording.text)).pooled_1D
        assert pooled is not None
        return Text(tokens.to(self.place.dtype), pooled.to(self.place.dtype), dropped=dropped)

    def bind(self, text: Text, drawing: Drawing) -> Text:
        """The text with the guidance scale, which dev and its ControlNets are told."""
        scale = torch.full((text.tokens_BLD.shape[0],), drawing.guidance_scale, device=self.place.device)
        return replace(text, extra={**text.extra, "guidance": scale})

    @torch.inference_mode()
    def inpaint(self, image_HWC: Image, mask_HW: NDArray[np.uint8]) -> Residuals | None:
        """Fill's channels: the latents of the picture with a grey hole, and the mask's pixels, cell by cell."""
        if self.extra != "hole":
            return None
        hole_HW = torch.from_numpy((mask_HW >= 128).astype(np.float32))
        latents = vae.encode_pixels(self.vae, (picture_to_tensor(image_HWC) * (1.0 - hole_HW))[None], self.place)
        side = self.cell_px
        cells = hole_HW.reshape(hole_HW.shape[0] // side, side, hole_HW.shape[1] // side, side).permute(1, 3, 0, 2)
        return {"channels": [torch.cat([latents, cells.reshape(1, side * side, *latents.shape[-2:]).to(latents)], dim=1)]}

    def own_control(self) -> OwnControl | None:
        """The map that Canny and Depth models read themselves."""
        return OwnControl() if self.extra == "map" else None

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is neither a FluxControlNetModel nor a Control LoRA.
            Mismatch: it was made for another base.
        """
        if checkpoint.path == self.checkpoint.path and self.extra == "map":
            return
        if is_control_lora(checkpoint):
            return check_control_lora(checkpoint, self.checkpoint, self.transformer, 4 * self.latent_channels)
        if checkpoint.classes.get("") not in ("FluxControlNetModel", "LimnFluxControlNetModel"):
            raise wrong_kind(checkpoint, self.checkpoint, "FluxControlNetModel", self.title)
        config, base = checkpoint.config(""), self.transformer.config
        channels = 4 * int(self.vae.config.latent_channels)
        wanted = {"in_channels": channels, "width": width_of(base)} | {key: base[key] for key in _WIDTHS}
        given = {"in_channels": config.get("in_channels", 64), "width": config.get("residual_channels") or width_of(config)}
        given |= {key: config[key] for key in _WIDTHS if key in config}
        self.must_agree(checkpoint, given, wanted)

    def load_control(self, checkpoint: Checkpoint) -> FluxControlNet | ControlLora | OwnControl:
        """The ControlNet or Control LoRA, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import FluxControlNetModel

        from pipelines.controlnet_flux_hole import FluxHoleControlNetModel, reads_hole
        from pipelines.variants import kind_named, load_variant

        self.check_control(checkpoint)
        own = self.own_control() if checkpoint.path == self.checkpoint.path else None
        if own is not None:
            return own
        if is_control_lora(checkpoint):
            return ControlLora.load(checkpoint, self.transformer, self.place, channels=4 * self.latent_channels)
        kind = FluxHoleControlNetModel if reads_hole(checkpoint) else kind_named(checkpoint.classes.get(""), FluxControlNetModel)
        return FluxControlNet(load_variant(kind, checkpoint, self.checkpoint, self.place), checkpoint, self.place, self._positions)

    @torch.inference_mode()
    def prepare(self, net: FluxControlNet | ControlLora | OwnControl, hint: Hint) -> PreparedControl:
        """A ControlNet or Control LoRA with its map, whose embedding is computed here, once.

        Raises:
            Mismatch: a union ControlNet knows nothing of this kind, or one for holes is given another.
        """
        if isinstance(net, FluxControlNet):
            return net.prepare(hint, self.encode_image)
        latents = self.encode_image(hint.map_HWC)
        return net.prepare(latents) if isinstance(net, ControlLora) else Channels(latents)

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The velocity for noisy latents at timestep t, in x's dtype."""
        given = residuals or {}
        x = x_BCHW.to(self.place.dtype)
        if self.extra != "nothing":
            channels = given["channels"][0] if "channels" in given else self._nothing_told(x.shape[-2], x.shape[-1])
            x = torch.cat([x, channels.to(x).expand(x.shape[0], -1, -1, -1)], dim=1)
        blocks, single = len(self.transformer.transformer_blocks), len(self.transformer.single_transformer_blocks)
        cyclic = over_blocks(given, "cyclic", blocks, cyclic=True)
        runs = over_blocks(given, "blocks", blocks)
        out: Tensor = self.transformer(
            hidden_states=pack(x),
            controlnet_block_samples=[a + b for a, b in zip(runs, cyclic, strict=True)] if runs and cyclic else runs or cyclic,
            controlnet_single_block_samples=over_blocks(given, "single", single),
            return_dict=False,
            **told(x, t, text, guided=self.guidance == "embedded"),
            **self._positions(x, text),
        )[0]
        return unpack(out, *x.shape[-2:]).to(x_BCHW.dtype)

    def _new_nothing_told(self, height: int, width: int) -> Tensor:
        """The channels when nothing is said there: no map, or nothing but a hole."""
        if self.extra == "map":
            return torch.zeros(1, int(self.vae.config.latent_channels), height, width, device=self.place.device)
        size = (height * self.cell_px, width * self.cell_px)
        told = self.inpaint(np.full((*size, 3), 128, np.uint8), np.full(size, 255, np.uint8))
        assert told is not None
        return told["channels"][0]


def _extra_channels(checkpoint: Checkpoint, transformer: Any, autoencoder: Any, cell_px: int) -> Extra:
    """What the transformer's tokens hold beside the latents.

    Raises:
        Mismatch: channels that no known FLUX model has.
    """
    latents = 4 * int(autoencoder.latent_channels)
    known: dict[int, Extra] = {latents: "nothing", 2 * latents: "map", 2 * latents + 4 * cell_px**2: "hole"}
    if transformer.in_channels not in known:
        raise Mismatch(
            f"model {str(checkpoint.path)!r}: the transformer takes {transformer.in_channels} channels, the autoencoder's latents give "
            f"{latents}; known are {', '.join(map(str, known))}: fetch the model again"
        )
    return known[transformer.in_channels]


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    transformer, where = parts["transformer"].config, f"model {str(checkpoint.path)!r}"
    for key, part, width in (
        ("joint_attention_dim", "text_encoder_2", parts["text_encoder_2"].config.d_model),
        ("pooled_projection_dim", "text_encoder", parts["text_encoder"].config.hidden_size),
    ):
        if transformer[key] != width:
            raise Mismatch(f"{where}: the transformer has {key} {transformer[key]}, {part} writes {width}: fetch the model again")


FAMILY = Flux
