"""Z-Image: a rectified flow whose picture and text are one sequence of tokens, read by Qwen3's last but one layer.

Its ControlNets share the base's embeddings and refiners; a control's weight is on what they give the base. diffusers has one ControlNet
here, without start and end; the loop has any number, in windows. Newer ones have channels for a picture with a hole beside the map's.
guidance_scale is the usual one: the scale of diffusers' pipelines for this family counts from 0, so theirs plus 1.
Source: Cai et al., Z-Image: An Efficient Image Generation Foundation Model with Single-Stream Diffusion Transformer, 2025.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import Mismatch
from pipelines import vae
from pipelines.chat import chat_frame, encode_chat
from pipelines.checkpoint import Checkpoint, need
from pipelines.family import Hint, Place, PreparedControl, Residuals, Text
from pipelines.flow_family import THIS_BASE, FlowFamily
from pipelines.images import hole_of, picture_to_tensor
from pipelines.kinds import wrong_kind
from pipelines.prompt import Wording
from pipelines.tokens import PATCH

TOKENS = 512  # of the prompt and its frame
RUN = 32  # the picture's tokens and the text's are each filled up to a multiple of this


class ZImage(FlowFamily):
    """A loaded checkpoint; see `pipelines.family.Family`.

    Residuals go to "layer/I", after the I-th layer: for the picture's tokens in reading order, what fills them up, and the text's.
    """

    name: ClassVar[str] = "zimage"
    title: ClassVar[str] = "Z-Image"
    weight_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder")
    skippable: ClassVar[tuple[str, ...]] = ("layers",)
    half: ClassVar[torch.dtype] = torch.bfloat16

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        self.text_encoder, self.tokenizer = parts["text_encoder"], parts["tokenizer"]
        self.cell_px = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._frame = chat_frame(self.tokenizer, checkpoint, enable_thinking=True)
        self.captions = lru_cache(16)(_captions)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A ZImageTransformer2DModel."""
        return checkpoint.classes.get("transformer") == "ZImageTransformer2DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "ZImage":
        """See `Family.load`."""
        from diffusers import AutoencoderKL, ZImageTransformer2DModel
        from transformers import Qwen2Tokenizer, Qwen3Model

        need(checkpoint, (*cls.weight_parts, "tokenizer", "scheduler"), cls.title)
        parts = {
            "transformer": checkpoint.network(ZImageTransformer2DModel, "transformer", place),
            "vae": checkpoint.network(AutoencoderKL, "vae", place),
            "text_encoder": checkpoint.network(Qwen3Model, "text_encoder", place),
            "tokenizer": checkpoint.tokenizer(Qwen2Tokenizer, "tokenizer"),
        }
        _check_parts(checkpoint, parts)
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """As the card of Z-Image-Turbo advises, which is not guided."""
        size = {"width": 1024, "height": 1024}
        return size | {"steps": 8, "guidance_scale": 1.0, "sampler": "euler", "schedule": "trailing"}

    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """The language model's states (1, L, D) of the prompt and its frame; clip_skip has no bearing on them."""
        before = len(self.tokenizer(self._frame[0]).input_ids)
        limit = TOKENS - before
        states, _, dropped = encode_chat(self.text_encoder, self.tokenizer, wording, self._frame, layer=-2, limit=limit)
        return Text(states.to(self.place.dtype), dropped=dropped)

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ZImageControlNetModel.
            Mismatch: it was made for another base.
        """
        if checkpoint.classes.get("") != "ZImageControlNetModel":
            raise wrong_kind(checkpoint, self.checkpoint, "ZImageControlNetModel", self.title)
        config, base, where = checkpoint.config(""), self.transformer.config, f"ControlNet {str(checkpoint.path)!r}"
        self.must_agree(checkpoint, {key: config[key] for key in ("dim", "n_heads") if key in config}, base)
        places, channels = config.get("control_layers_places") or [0], int(config.get("control_in_dim") or 0)
        if max(places) >= base.n_layers:
            raise Mismatch(f"{where} adds to layer {max(places)}, the base model has layers 0 to {base.n_layers - 1}: {THIS_BASE}")
        if channels < base.in_channels:
            raise Mismatch(f"{where} takes {channels} channels, the base model's latents have {base.in_channels}: {THIS_BASE}")

    def load_control(self, checkpoint: Checkpoint) -> Any:
        """The ControlNet, checked, placed beside this model and given the parts that it shares with it.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import ZImageControlNetModel, ZImageTransformer2DModel

        self.check_control(checkpoint)
        net = checkpoint.network(ZImageControlNetModel, "", self.place)
        net.gradient_checkpointing = False  # asked for by its forward, never set
        return ZImageControlNetModel.from_transformer(net, self.lend(ZImageTransformer2DModel)).to(self.place.device)

    @torch.inference_mode()
    def prepare(self, net: Any, hint: Hint) -> "SteeredZImage":
        """A ControlNet with its map's latents, or with a picture and its hole in the channels that newer networks have for them.

        Raises:
            Mismatch: a hole for a network without such channels.
        """
        channels, own = int(net.config.control_in_dim), int(self.vae.config.latent_channels)
        if hint.kind != "inpaint":
            latents = self.encode_image(hint.map_HWC)
            return SteeredZImage(net, self, F.pad(latents, (0, 0, 0, 0, 0, channels - own)).to(self.place.dtype))
        if channels != 2 * own + 1:
            raise Mismatch(
                f"control 'inpaint': this ControlNet takes {channels} channels, for a hole it would take {2 * own + 1}: "
                "use a ControlNet of the second version, or paint in the hole without it"
            )
        hole_HW = hole_of(hint.map_HWC, hint.mask_HW)
        rest = vae.encode_pixels(self.vae, picture_to_tensor(hint.map_HWC)[None] * ~hole_HW, self.place)
        kept = F.interpolate((~hole_HW).float()[None, None], rest.shape[-2:]).to(rest)
        return SteeredZImage(net, self, torch.cat([torch.zeros_like(rest), kept, rest], dim=1).to(self.place.dtype), tells="hole")

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The velocity for noisy latents at timestep t, in x's dtype."""
        captions = self.captions(text)
        length = _filled(x_BCHW.shape[-2] * x_BCHW.shape[-1] // PATCH**2) + max(_filled(len(caption)) for caption in captions)
        layers = {int(name.partition("/")[2]): group[0][:, :length] for name, group in (residuals or {}).items()}
        out = self.transformer(*told(x_BCHW.to(self.place.dtype), t, captions), controlnet_block_samples=layers or None, return_dict=False)[
            0
        ]
        return -torch.stack(out)[:, :, 0].to(x_BCHW.dtype)


def told(x_BCHW: Tensor, t: Tensor, captions: list[Tensor]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """What the transformer and its ControlNets are told alike: frames, time from noise (0) to picture (1), texts."""
    return list(x_BCHW[:, :, None].unbind(0)), (1000 - t.expand(x_BCHW.shape[0])) / 1000, captions


@dataclass(frozen=True, eq=False)
class SteeredZImage:
    """A ControlNet with one map; see `pipelines.family.PreparedControl`."""

    net: Any
    family: ZImage
    map_1CHW: Tensor
    tells: Literal["map", "hole", "both"] = "map"
    positive_only: bool = False
    patch: int = PATCH

    @property
    def levels(self) -> int:
        """The layers that it adds to."""
        return len(self.net.control_layers_places)

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add after the transformer's layers, unscaled; as long as with the longest text, so that all of one picture agree."""
        captions = self.family.captions(text)
        maps = list(self.map_1CHW[:, :, None].expand(x.shape[0], -1, -1, -1, -1))
        found = self.net(*told(x.to(self.family.place.dtype), t, captions), maps)
        length = _filled(x.shape[-2] * x.shape[-1] // PATCH**2) + TOKENS
        return {f"layer/{layer}": [F.pad(residual, (0, 0, 0, length - residual.shape[1]))] for layer, residual in found.items()}

    def join(self, weight: float, other: PreparedControl, other_weight: float) -> "tuple[SteeredZImage, float] | None":
        """A map and a hole of one weight, which one call of their network can read: each has channels of its own."""
        if not isinstance(other, SteeredZImage) or other.net is not self.net or weight != other_weight:
            return None
        if {self.tells, other.tells} != {"map", "hole"}:
            return None
        return replace(self, map_1CHW=self.map_1CHW + other.map_1CHW, tells="both"), weight


def _filled(tokens: int) -> int:
    return -(-tokens // RUN) * RUN


def _captions(text: Text) -> list[Tensor]:
    """Each row's tokens (L, D), those that count."""
    if text.mask_BL is None:
        return list(text.tokens_BLD.unbind(0))
    lengths = text.mask_BL.sum(dim=1).to(torch.int64).tolist()
    return [tokens[:length] for tokens, length in zip(text.tokens_BLD, lengths, strict=True)]


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    transformer, where = parts["transformer"].config, f"model {str(checkpoint.path)!r}"
    width = parts["text_encoder"].config.hidden_size
    if transformer.cap_feat_dim != width:
        raise Mismatch(f"{where}: the transformer reads text of width {transformer.cap_feat_dim}, text_encoder writes {width}")
    if transformer.in_channels != parts["vae"].config.latent_channels:
        raise Mismatch(
            f"{where}: the transformer takes {transformer.in_channels} channels, the autoencoder makes "
            f"{parts['vae'].config.latent_channels}: fetch the model again"
        )


FAMILY = ZImage
