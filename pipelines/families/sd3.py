"""Stable Diffusion 3 and 3.5: two CLIP encoders and, where it is there, T5; a transformer over picture and text tokens; rectified flow.

What tells the versions apart (QK norm, second attentions, sizes, shift) stands in the checkpoint. Source: Esser et al., Scaling Rectified
Flow Transformers for High-Resolution Image Synthesis, 2024.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.control import Image
from core.errors import BadRequest, Mismatch
from pipelines import vae
from pipelines.checkpoint import Checkpoint, need
from pipelines.clip import Layer, count_windows, encode_t5, encode_windows
from pipelines.controlnet_sd3 import LoadedControlNet, SteeredControlNet, cells, painted
from pipelines.family import Hint, Place, Residuals, Text
from pipelines.flow_family import THIS_BASE, FlowFamily, width_of
from pipelines.images import picture_to_tensor
from pipelines.inversion import Inversions
from pipelines.kinds import wrong_kind
from pipelines.prompt import EMPTY, Wording

T5_TOKENS = 256  # what SD3 was trained to read of T5, with padding


class StableDiffusion3(FlowFamily):
    """A loaded checkpoint; see `pipelines.family.Family`. inversions: words of prompts that have embeddings of their own in CLIP.

    Residuals go to "blocks/N": N of them, spread evenly over the transformer's blocks; "channels" are added to the latents' channels.
    """

    name: ClassVar[str] = "sd3"
    title: ClassVar[str] = "Stable Diffusion 3 or 3.5"
    weight_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder", "text_encoder_2")
    skippable: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    half: ClassVar[torch.dtype] = torch.bfloat16
    clip_layer: ClassVar[Layer | None] = "penultimate"
    perturbed_layers: ClassVar[str] = r"^transformer_blocks\.1\.attn$"
    inversions: Inversions | None = None

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        self.t5, self.t5_tokenizer = parts.get("text_encoder_3"), parts.get("tokenizer_3")
        self.clips = tuple((parts[f"text_encoder{end}"], parts[f"tokenizer{end}"]) for end in ("", "_2"))
        self.patch = int(self.transformer.config.patch_size)
        self.cell_px = 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The size the model was trained at, and what its makers sample it with."""
        size = int(self.transformer.config.sample_size) * self.cell_px
        guidance = 4.5 if self.transformer.config.qk_norm else 7.0  # 3.5 has QK norm
        return {"width": size, "height": size, "steps": 28, "guidance_scale": guidance, "sampler": "euler", "schedule": "uniform"}

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """An SD3Transformer2DModel."""
        return checkpoint.classes.get("transformer") == "SD3Transformer2DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "StableDiffusion3":
        """See `Family.load`; a checkpoint without T5 is whole."""
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

        need(checkpoint, (*cls.weight_parts, "tokenizer", "tokenizer_2", "scheduler"), cls.title)
        parts = {
            "transformer": checkpoint.network(SD3Transformer2DModel, "transformer", place),
            "vae": checkpoint.network(AutoencoderKL, "vae", place),
        }
        for end in ("", "_2"):
            parts[f"text_encoder{end}"] = checkpoint.network(CLIPTextModelWithProjection, f"text_encoder{end}", place)
            parts[f"tokenizer{end}"] = checkpoint.tokenizer(CLIPTokenizer, f"tokenizer{end}")
        if _has(checkpoint, "text_encoder_3"):
            need(checkpoint, ("tokenizer_3",), cls.title)
            parts["text_encoder_3"] = checkpoint.network(T5EncoderModel, "text_encoder_3", place)
            parts["tokenizer_3"] = checkpoint.tokenizer(T5Tokenizer, "tokenizer_3")
        _check_parts(checkpoint, parts)
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels.

        Raises:
            BadRequest: the picture cannot be cut into whole patches, or is larger than the model's table of positions.
        """
        longest = int(self.transformer.config.pos_embed_max_size) * self.side_px
        for name, value in (("width", width), ("height", height)):
            if value % self.side_px or value > longest:
                raise BadRequest(f"{name} = {value}: this model draws in patches of {self.side_px} pixels; give a multiple up to {longest}")
        return self.latent_channels, height // self.cell_px, width // self.cell_px

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """The states of both CLIP encoders beside one another, then T5's (zeros without T5); pooled: both projections.

        The transformer knows no places in a text, so windows that a shorter prompt is filled with may stand after T5's states.
        """
        clip_1LD, pooled_1D = self._encode_clips(wording, clip_skip)
        width, dropped = int(self.transformer.config.joint_attention_dim), ""
        t5_1LD = torch.zeros(1, T5_TOKENS, width, device=clip_1LD.device)
        if self.t5 is not None:
            t5_1LD, _, dropped = encode_t5(self.t5, self.t5_tokenizer, wording, max_length=T5_TOKENS)

        def filler() -> Tensor:
            return F.pad(self._encode_clips(EMPTY, clip_skip)[0], (0, width - clip_1LD.shape[-1])).to(self.place.dtype)

        tokens_1LD = torch.cat([F.pad(clip_1LD, (0, width - clip_1LD.shape[-1])), t5_1LD], dim=1).to(self.place.dtype)
        return Text(tokens_1LD, pooled_1D.to(self.place.dtype), dropped=dropped, empty=wording == EMPTY, filler=filler)

    def _encode_clips(self, wording: Wording, clip_skip: int) -> tuple[Tensor, Tensor]:
        """States (1, L, D) and pooled (1, D) of both encoders side by side."""
        windows = max(count_windows(tokenizer, wording, self.inversions) for _, tokenizer in self.clips)
        options: dict[str, Any] = {"clip_skip": clip_skip, "layer": self.clip_layer, "windows": windows, "inversions": self.inversions}
        both = [encode_windows(encoder, tokenizer, wording, **options) for encoder, tokenizer in self.clips]
        return torch.cat([one.tokens_1LD for one in both], dim=-1), torch.cat(
            [one.pooled_1D for one in both if one.pooled_1D is not None], -1
        )

    def inpaint(self, image_HWC: Image, mask_HW: NDArray[np.uint8]) -> Residuals | None:
        """For a transformer with further channels: the mask, and the picture's latents with mid-grey where it is painted."""
        if int(self.transformer.config.in_channels) == int(self.vae.config.latent_channels):
            return None
        pixels = picture_to_tensor(image_HWC) * ~painted(mask_HW)
        latents = vae.encode_pixels(self.vae, pixels[None], self.place)
        return {"channels": [torch.cat([cells(mask_HW, latents), latents], dim=1)]}

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ControlNet.
            Mismatch: it was made for another base.
        """
        if checkpoint.classes.get("") not in ("SD3ControlNetModel", "LimnSD3ControlNetModel"):
            raise wrong_kind(checkpoint, self.checkpoint, "SD3ControlNetModel", self.title)
        config = checkpoint.config("")
        base = self.transformer.config
        reads_text = config.get("joint_attention_dim", 4096) is not None
        found = {
            "width": config.get("residual_channels") or width_of(config, 18, 64),
            "patch_size": config.get("patch_size", 2),
            "in_channels": config.get("in_channels", 16),
            "pooled_projection_dim": config.get("pooled_projection_dim", 2048),
        }
        needed = {
            "width": width_of(base),
            "patch_size": base.patch_size,
            "in_channels": self.vae.config.latent_channels,
            "pooled_projection_dim": base.pooled_projection_dim,
        }
        if reads_text:
            found |= {"joint_attention_dim": config.get("joint_attention_dim", 4096), "qk_norm": config.get("qk_norm")}
            needed |= {"joint_attention_dim": base.joint_attention_dim, "qk_norm": base.qk_norm}
        where = f"{THIS_BASE} (3 and 3.5 medium: width 1536, qk_norm in 3.5 alone; 3.5 large: width 2432)"
        self.must_agree(checkpoint, found, needed, where)

    def load_control(self, checkpoint: Checkpoint) -> LoadedControlNet:
        """The ControlNet, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import SD3ControlNetModel, SD3Transformer2DModel

        from pipelines.variants import kind_named, load_variant

        self.check_control(checkpoint)
        kind = kind_named(checkpoint.classes.get(""), SD3ControlNetModel)
        net = load_variant(kind, checkpoint, self.checkpoint, self.place)
        lender = self.transformer if net.config.use_pos_embed else self.lend(SD3Transformer2DModel)
        return LoadedControlNet(net, lender, self.vae, self.place)

    @torch.inference_mode()
    def prepare(self, net: LoadedControlNet, hint: Hint) -> SteeredControlNet:
        """A ControlNet with its map, whose latents are made and embedded here, once; their mean, so that no seed plays in.

        Raises:
            BadRequest: an inpainting ControlNet without a mask.
        """
        return SteeredControlNet(net, net.embed(hint))

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The transformer's velocity for noisy latents at timestep t, in x's dtype."""
        places = dict(residuals or {})
        channels = [further.expand(x_BCHW.shape[0], -1, -1, -1) for further in places.pop("channels", [])]
        out: Tensor = self.transformer(
            torch.cat([x_BCHW, *channels], dim=1).to(self.place.dtype),
            encoder_hidden_states=text.tokens_BLD,
            pooled_projections=text.pooled_BD,
            timestep=t.expand(x_BCHW.shape[0]),
            block_controlnet_hidden_states=_on_blocks(list(places.values()), len(self.transformer.transformer_blocks)),
            return_dict=False,
        )[0]
        return out.to(x_BCHW.dtype)


def _on_blocks(groups: list[list[Tensor]], blocks: int) -> list[Tensor] | None:
    """ControlNets of several depths as one list for all blocks: with n residuals, block i takes number ⌊i·n/blocks⌋."""
    if len(groups) < 2:
        return groups[0] if groups else None
    spread = [[group[int(block / (blocks / len(group)))] for group in groups] for block in range(blocks)]
    return [torch.stack(same).sum(dim=0) for same in spread]


def _has(checkpoint: Checkpoint, part: str) -> bool:
    return part in checkpoint.classes and (not checkpoint.path.is_dir() or (checkpoint.path / part).is_dir())


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    transformer, autoencoder = parts["transformer"].config, parts["vae"].config
    clips = [parts[name].config for name in ("text_encoder", "text_encoder_2")]
    where, channels, text = f"model {str(checkpoint.path)!r}", autoencoder.latent_channels, transformer.joint_attention_dim
    if transformer.in_channels not in (channels, 2 * channels + 1):
        raise Mismatch(f"{where}: the transformer takes {transformer.in_channels} channels, the autoencoder makes {channels}")
    pooled = sum(clip.projection_dim for clip in clips)
    if pooled != transformer.pooled_projection_dim:
        raise Mismatch(
            f"{where}: the transformer reads {transformer.pooled_projection_dim} pooled numbers, both CLIP encoders write {pooled}"
        )
    wide = max(sum(clip.hidden_size for clip in clips), parts["text_encoder_3"].config.d_model if "text_encoder_3" in parts else 0)
    if wide > text:
        raise Mismatch(f"{where}: the transformer reads text of width {text}, the text encoders write {wide}")


FAMILY = StableDiffusion3
