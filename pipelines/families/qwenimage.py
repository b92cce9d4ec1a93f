"""Qwen-Image: a rectified flow over packed latents of a video autoencoder, read by Qwen2.5-VL's tokens.

Guided by a second forward, whose result is given the length of the prompt's own. diffusers has one ControlNet at a time here; the loop
has any number. Source: Wu et al., Qwen-Image Technical Report, 2025.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from core.control import Image
from core.errors import BadModel, Mismatch
from pipelines.chat import encode_chat
from pipelines.checkpoint import Checkpoint, need
from pipelines.family import Hint, Place, Residuals, Text
from pipelines.flow_family import FlowFamily, width_of
from pipelines.images import hole_of, picture_to_tensor
from pipelines.kinds import wrong_kind
from pipelines.prompt import Wording
from pipelines.tokens import PATCH, over_blocks, pack, place_of, unpack

TOKENS = 512  # after the frame's beginning, which is not read
# What the model was trained to find around a prompt.
FRAME = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)


class QwenImage(FlowFamily):
    """A loaded checkpoint; see `pipelines.family.Family`. Residuals go to "blocks/N", N levels for the transformer's blocks."""

    name: ClassVar[str] = "qwenimage"
    title: ClassVar[str] = "Qwen-Image"
    weight_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder")
    skippable: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    half: ClassVar[torch.dtype] = torch.bfloat16
    residuals_shared: ClassVar[bool] = True

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        self.text_encoder, self.tokenizer = parts["text_encoder"], parts["tokenizer"]
        self.cell_px = 2 ** len(self.vae.config.temperal_downsample)
        # Of the autoencoder's channels; on the latents' own place.
        self._mean_1C11 = torch.tensor(self.vae.config.latents_mean, device=place.device).reshape(1, -1, 1, 1)
        self._std_1C11 = torch.tensor(self.vae.config.latents_std, device=place.device).reshape(1, -1, 1, 1)

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A QwenImageTransformer2DModel."""
        return checkpoint.classes.get("transformer") == "QwenImageTransformer2DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "QwenImage":
        """See `Family.load`."""
        from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

        need(checkpoint, (*cls.weight_parts, "tokenizer", "scheduler"), cls.title)
        if checkpoint.config("transformer").get("use_additional_t_cond"):
            raise BadModel(f"model {str(checkpoint.path)!r} draws pictures in layers, which is not supported: use a plain Qwen-Image")
        parts = {
            "transformer": checkpoint.network(QwenImageTransformer2DModel, "transformer", place),
            "vae": checkpoint.network(AutoencoderKLQwenImage, "vae", place),
            "text_encoder": checkpoint.network(Qwen2_5_VLForConditionalGeneration, "text_encoder", place),
            "tokenizer": checkpoint.tokenizer(Qwen2Tokenizer, "tokenizer"),
        }
        _check_parts(checkpoint, parts)
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @property
    def defaults(self) -> Mapping[str, Any]:
        """As the model's card advises."""
        size = {"width": 1328, "height": 1328}
        return size | {"steps": 50, "guidance_scale": 4.0, "sampler": "euler", "schedule": "trailing"}

    @property
    def latent_channels(self) -> int:
        """The autoencoder's."""
        return int(self.vae.config.z_dim)

    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """The language model's last states (1, L, D) of the prompt and what follows it; clip_skip has no bearing on them."""
        states, before, dropped = encode_chat(self.text_encoder, self.tokenizer, wording, FRAME, layer=-1, limit=TOKENS)
        return Text(states[:, before:].to(self.place.dtype), dropped=dropped)

    def encode_image(self, image_HWC: Image) -> Tensor:
        """The latents (1, C, H, W) of a picture: the mean of their distribution, each channel brought to deviation 1."""
        return self._encode(picture_to_tensor(image_HWC)[None])

    @torch.inference_mode()
    def _encode(self, pixels_BCHW: Tensor) -> Tensor:
        frames = pixels_BCHW[:, :, None].to(self.place.device, self.vae.dtype)
        mean: Tensor = self.vae.encode(frames).latent_dist.mean[:, :, 0]
        return (mean.float() - self._mean_1C11) / self._std_1C11

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in about [−1, 1]."""
        latents = (latents_BCHW.to(self.place.device) * self._std_1C11 + self._mean_1C11).to(self.vae.dtype)
        pixels: Tensor = self.vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]
        return pixels.float()

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is no QwenImageControlNetModel.
            Mismatch: it was made for another base.
        """
        if checkpoint.classes.get("") != "QwenImageControlNetModel":
            raise wrong_kind(checkpoint, self.checkpoint, "QwenImageControlNetModel", self.title)
        config, base = checkpoint.config(""), self.transformer.config
        found = {"in_channels": config.get("in_channels", 64), "joint_attention_dim": config.get("joint_attention_dim", 3584)}
        self.must_agree(checkpoint, found | {"width": width_of(config)}, {key: base[key] for key in found} | {"width": width_of(base)})

    def load_control(self, checkpoint: Checkpoint) -> "QwenControlNet":
        """The ControlNet, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import QwenImageControlNetModel

        self.check_control(checkpoint)
        return QwenControlNet(checkpoint.network(QwenImageControlNetModel, "", self.place), self)

    @torch.inference_mode()
    def prepare(self, net: "QwenControlNet", hint: Hint) -> "SteeredQwen":
        """A ControlNet with its map, whose embedding is computed here, once."""
        return SteeredQwen(net, net.embedder(pack(net.features(hint).to(self.place.dtype))))

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The velocity for noisy latents at timestep t, in x's dtype."""
        height, width = x_BCHW.shape[-2:]
        out: Tensor = self.transformer(
            hidden_states=pack(x_BCHW.to(self.place.dtype)),
            controlnet_block_samples=over_blocks(residuals or {}, "blocks", len(self.transformer.transformer_blocks)),
            return_dict=False,
            **told(x_BCHW, t, text),
        )[0]
        return unpack(out, height, width).to(x_BCHW.dtype)

    def after_guidance(self, guided_BCHW: Tensor, prompted_BCHW: Tensor) -> Tensor:
        """Each token as guided, as long as the prompt's own."""
        guided, prompted = pack(guided_BCHW), pack(prompted_BCHW)
        length = guided.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(guided.dtype).tiny)
        return unpack(guided * (prompted.norm(dim=-1, keepdim=True) / length), *guided_BCHW.shape[-2:])


def told(x_BCHW: Tensor, t: Tensor, text: Text) -> dict[str, Any]:
    """What the transformer and its ControlNets are told alike."""
    rows, (height, width) = x_BCHW.shape[0], x_BCHW.shape[-2:]
    return {
        "encoder_hidden_states": text.tokens_BLD,
        "encoder_hidden_states_mask": text.mask_BL,
        "timestep": t.expand(rows) / 1000,
        "img_shapes": [(1, height // PATCH, width // PATCH)] * rows,
    }


class QwenControlNet:
    """A QwenImageControlNetModel whose embedding of the map has been taken out, so that it runs once a picture."""

    def __init__(self, net: Any, family: QwenImage) -> None:
        self.net, self.family = net, family
        self.embedder = net.controlnet_x_embedder
        self.inpaints = int(net.config.extra_condition_channels) > 0
        net.controlnet_x_embedder = nn.Identity()

    def features(self, hint: Hint) -> Tensor:
        """The map's latents (1, C, H, W); for inpainting, those of the map with a black hole, and 1 where it has none.

        The hole is the hint's mask, or without one what is black already.
        """
        if not self.inpaints:
            return self.family.encode_image(hint.map_HWC)
        hole_HW = hole_of(hint.map_HWC, hint.mask_HW)
        latents = self.family._encode(picture_to_tensor(hint.map_HWC)[None].masked_fill(hole_HW, -1.0))
        kept = nn.functional.interpolate((~hole_HW).float()[None, None], latents.shape[-2:]).to(latents)
        return torch.cat([latents, kept], dim=1)


@dataclass(frozen=True, eq=False)
class SteeredQwen:
    """A ControlNet with one map; see `pipelines.family.PreparedControl`."""

    loaded: QwenControlNet
    map_1LD: Tensor
    positive_only: bool = False
    patch: int = PATCH

    @property
    def levels(self) -> int:
        """The ControlNet's blocks."""
        return len(self.loaded.net.controlnet_blocks)

    def residuals(self, x: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add after the transformer's blocks, unscaled."""
        packed = pack(x.to(self.loaded.family.place.dtype))
        levels = self.loaded.net(hidden_states=packed, controlnet_cond=self.map_1LD, return_dict=False, **told(x, t, text))
        return {place_of("blocks", levels): list(levels)}


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    transformer, where = parts["transformer"].config, f"model {str(checkpoint.path)!r}"
    width = parts["text_encoder"].get_input_embeddings().weight.shape[1]
    if transformer.joint_attention_dim != width:
        raise Mismatch(f"{where}: the transformer reads text of width {transformer.joint_attention_dim}, text_encoder writes {width}")
    if transformer.in_channels != 4 * parts["vae"].config.z_dim:
        raise Mismatch(
            f"{where}: the transformer takes {transformer.in_channels} channels, four cells of the autoencoder's latents have "
            f"{4 * parts['vae'].config.z_dim}: fetch the model again"
        )


FAMILY = QwenImage
