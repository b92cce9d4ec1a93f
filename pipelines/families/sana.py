"""Sana: a Gemma 2 text encoder, a transformer of linear attention over patches of an autoencoder that makes 32 pixels one; rectified flow.

Source: Xie et al., SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers, 2024.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, ClassVar

import torch
from torch import Tensor

from core.control import Image
from core.errors import BadModel, Mismatch
from pipelines.checkpoint import Checkpoint, need
from pipelines.controlnet_sana import LoadedControlNet, SteeredControlNet
from pipelines.family import Drawing, Hint, Place, Residuals, Text
from pipelines.flow_family import THIS_BASE, FlowFamily, width_of
from pipelines.images import picture_to_tensor
from pipelines.kinds import wrong_kind
from pipelines.loading import quiet
from pipelines.prompt import EMPTY, Wording

TOKENS = 300  # what Sana was trained to read of a prompt, with padding


class Sana(FlowFamily):
    """A loaded checkpoint; see `pipelines.family.Family`.

    Residuals go to "blocks/N": N of them, after the second block and those that follow. The prompt is encoded behind the instruction to
    enhance it that Sana was trained with, the negative prompt by itself; `bind` chooses.
    """

    name: ClassVar[str] = "sana"
    title: ClassVar[str] = "Sana"
    weight_parts: ClassVar[tuple[str, ...]] = ("transformer", "vae", "text_encoder")
    skippable: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    patch = 1
    perturbed_layers: ClassVar[str] = r"^transformer_blocks\.0\.attn1$"
    half: ClassVar[torch.dtype] = torch.bfloat16

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place, parts, scheduler)
        self.text_encoder, self.tokenizer = parts["text_encoder"], parts["tokenizer"]
        self.instruction = _instruction()
        self.cell_px = 2 ** (len(self.vae.config.encoder_block_out_channels) - 1)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The size the model was trained at, and what its makers sample it with."""
        size = int(self.transformer.config.sample_size) * self.cell_px
        solver = "DPMSolver" in str(self.scheduler.get("_class_name"))
        sampling = {"sampler": "dpmpp_2m", "schedule": "trailing"} if solver else {"sampler": "euler", "schedule": "uniform"}
        return {"width": size, "height": size, "steps": 20, "guidance_scale": 4.5, **sampling}

    @classmethod
    def recognises(cls, checkpoint: Checkpoint) -> bool:
        """A SanaTransformer2DModel."""
        return checkpoint.classes.get("transformer") == "SanaTransformer2DModel"

    @classmethod
    def load(cls, checkpoint: Checkpoint, place: Place) -> "Sana":
        """See `Family.load`. Where half precision is asked for, text encoder and autoencoder compute in bfloat16: they overflow in it."""
        from diffusers import AutoencoderDC, SanaTransformer2DModel
        from transformers import Gemma2Model, GemmaTokenizer

        need(checkpoint, (*cls.weight_parts, "tokenizer", "scheduler"), cls.title)
        if checkpoint.config("transformer").get("guidance_embeds"):
            raise BadModel(f"model {str(checkpoint.path)!r} is Sana-Sprint, which is sampled in another way: give a Sana 1.0 or 1.5 model")
        wide = replace(place, dtype=torch.bfloat16) if place.dtype == torch.float16 else place
        parts = {
            "transformer": checkpoint.network(SanaTransformer2DModel, "transformer", place),
            "vae": checkpoint.network(AutoencoderDC, "vae", wide),
            "text_encoder": checkpoint.network(Gemma2Model, "text_encoder", wide),
            "tokenizer": checkpoint.tokenizer(GemmaTokenizer, "tokenizer"),
        }
        _check_parts(checkpoint, parts)
        return cls(checkpoint, place, parts, checkpoint.config("scheduler"))

    @torch.inference_mode()
    def encode_wording(self, wording: Wording, clip_skip: int) -> Text:
        """Gemma's last states (1, 300, D), as a prompt; extra: as a negative prompt. There is no CLIP whose layers could be skipped."""
        tokens_1LD, mask_1L, dropped = self._encode(wording, self.instruction)
        plain_1LD, plain_1L, _ = self._encode(wording, "")
        return Text(
            tokens_1LD,
            mask_BL=mask_1L,
            extra={"plain": plain_1LD, "plain_mask": plain_1L},
            dropped=dropped,
            empty=wording == EMPTY,
        )

    def bind(self, text: Text, drawing: Drawing) -> Text:
        """The prompt as what it is: a prompt to enhance, or a negative one."""
        if not drawing.negative:
            return replace(text, extra={})
        return replace(text, tokens_BLD=text.extra["plain"], mask_BL=text.extra["plain_mask"], extra={})

    def _encode(self, wording: Wording, instruction: str) -> tuple[Tensor, Tensor, str]:
        """States (1, 300, D), mask (1, 300), and the end of the prompt that did not fit; weights multiply their tokens' states."""
        text, weights = _lower(wording)
        before = len(self.tokenizer(instruction, verbose=False).input_ids) if instruction else 2
        length = before + TOKENS - 2  # the start, the instruction's last token and 298 of the prompt are kept
        found = self.tokenizer(instruction + text, return_offsets_mapping=True, truncation=False, verbose=False)
        ids, spans = found.input_ids[:length], found.offset_mapping[:length]
        missing = length - len(ids)
        mask = torch.tensor([[1] * len(ids) + [0] * missing], device=self.place.device)
        padded = torch.tensor([ids + [self.tokenizer.pad_token_id] * missing], device=self.place.device)
        states: Tensor = self.text_encoder(padded, attention_mask=mask)[0]
        if wording.weighted:
            places = [end - 1 - len(instruction) for _, end in spans]
            factors = [weights[place] if place >= 0 else 1.0 for place in places] + [1.0] * missing
            states = states * torch.tensor(factors, device=states.device, dtype=states.dtype)[None, :, None]
        kept = [0, *range(length - TOKENS + 1, length)]
        dropped = str(self.tokenizer.decode(found.input_ids[length:], skip_special_tokens=True)).strip()
        return states[:, kept].to(self.place.dtype), mask[:, kept].to(self.place.dtype), dropped

    @torch.inference_mode()
    def encode_image(self, image_HWC: Image) -> Tensor:
        """See `Family.encode_image`; this autoencoder gives one picture one point, not a distribution."""
        pixels = picture_to_tensor(image_HWC)[None].to(self.place.device, self.vae.dtype)
        latents: Tensor = self.vae.encode(pixels, return_dict=False)[0]
        return latents.float() * float(self.vae.config.scaling_factor)

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """See `Family.decode`."""
        scaled = (latents_BCHW / float(self.vae.config.scaling_factor)).to(self.place.device, self.vae.dtype)
        pixels: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return pixels.float()

    def check_control(self, checkpoint: Checkpoint) -> None:
        """Whether a ControlNet fits this model, from its configuration alone.

        Raises:
            BadModel: it is no ControlNet.
            Mismatch: it was made for another base.
        """
        if checkpoint.classes.get("") != "SanaControlNetModel":
            raise wrong_kind(checkpoint, self.checkpoint, "SanaControlNetModel", self.title)
        net, base = checkpoint.config(""), self.transformer.config
        found = {
            "width": width_of(net, 70, 32),
            "in_channels": net.get("in_channels", 32),
            "caption_channels": net.get("caption_channels", 2304),
            "patch_size": net.get("patch_size", 1),
        }
        needed = {
            "width": width_of(base),
            "in_channels": base.in_channels,
            "caption_channels": base.caption_channels,
            "patch_size": base.patch_size,
        }
        self.must_agree(checkpoint, found, needed, f"{THIS_BASE} (Sana 0.6B: width 1152; 1.6B: width 2240)")
        if net.get("num_layers", 7) >= base.num_layers:
            raise Mismatch(
                f"ControlNet {str(checkpoint.path)!r} has {net.get('num_layers', 7)} layers, the base model takes at most "
                f"{base.num_layers - 1}: {THIS_BASE}"
            )

    def load_control(self, checkpoint: Checkpoint) -> LoadedControlNet:
        """The ControlNet, checked and placed beside this model.

        Raises:
            BadModel, Mismatch: as `check_control`, and damaged or missing weights.
        """
        from diffusers import SanaControlNetModel

        self.check_control(checkpoint)
        return LoadedControlNet(checkpoint.network(SanaControlNetModel, "", self.place), self.place)

    @torch.inference_mode()
    def prepare(self, net: LoadedControlNet, hint: Hint) -> SteeredControlNet:
        """A ControlNet with its map, whose latents are made and embedded here, once."""
        return SteeredControlNet(net, net.embed(self.encode_image(hint.map_HWC)))

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        """The transformer's velocity for noisy latents at timestep t, in x's dtype; a learned variance is left aside."""
        out: Tensor = self.transformer(
            x_BCHW.to(self.place.dtype),
            encoder_hidden_states=text.tokens_BLD,
            encoder_attention_mask=text.mask_BL,
            timestep=t.expand(x_BCHW.shape[0]) * float(self.transformer.config.timestep_scale),
            controlnet_block_samples=_in_order(list((residuals or {}).values())),
            return_dict=False,
        )[0]
        return out[:, : x_BCHW.shape[1]].to(x_BCHW.dtype)


def _in_order(groups: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...] | None:
    """ControlNets of several depths as one: they all begin at the same block."""
    if len(groups) < 2:
        return tuple(groups[0]) if groups else None
    return tuple(torch.stack([one for one in same if one is not None]).sum(dim=0) for same in zip_longest(*groups))


def _instruction() -> str:
    """What stands before every prompt, as diffusers' pipeline has it."""
    with quiet():  # other pipelines' remarks come with it
        from diffusers import SanaPipeline

    lines: list[str] = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


def _lower(wording: Wording) -> tuple[str, list[float]]:
    """The words in lower case without space around them, and the weight of every character."""
    pieces: list[tuple[str, float]] = []
    for i, passage in enumerate(wording.passages):
        pieces += [(" ", 1.0)] * (i > 0) + [(phrase.text.lower(), phrase.weight) for phrase in passage]
    text = "".join(piece for piece, _ in pieces)
    weights = [weight for piece, weight in pieces for _ in piece]
    start = len(text) - len(text.lstrip())
    return text.strip(), weights[start:]


def _check_parts(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Whether the parts of one checkpoint speak of the same widths."""
    transformer, channels = parts["transformer"].config, parts["vae"].config.latent_channels
    where, width = f"model {str(checkpoint.path)!r}", parts["text_encoder"].config.hidden_size
    if transformer.in_channels != channels:
        raise Mismatch(f"{where}: the transformer takes {transformer.in_channels} channels, the autoencoder makes {channels}")
    if transformer.caption_channels != width:
        raise Mismatch(f"{where}: the transformer reads text of width {transformer.caption_channels}, the text encoder writes {width}")


FAMILY = Sana
