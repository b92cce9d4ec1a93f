"""How each family's ControlNet begins, and how it is heard while it learns: the base's encoder copied, everything it says zero.

What the network is fed here is what rendering feeds it (`pipelines.controlnet*`); only that rendering embeds the map once, and training at
every step. Axes: B rows, C channels, H and W pixels or latent cells, L tokens, D width.
Source: Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models, 2023, section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.errors import BadModel, BadRequest, Mismatch
from core.stack import unstacked
from pipelines.controlnet import HOLE, added_conditions, hint_pixels
from pipelines.controlnet_flux import Positions, told
from pipelines.family import Family, Hint, Residuals, Text
from pipelines.loading import quiet
from pipelines.tokens import pack, place_of
from pipelines.vae import encode
from pipelines.variants import LimnControlNetModel, LimnFluxControlNetModel, LimnSD3ControlNetModel, copy_encoder
from training.beginning import HINT_CHANNELS as HINT_CHANNELS
from training.beginning import Start, counts, half_as_wide, unet_is_plain, unet_variant

UNSHIFTED = {"shift": False}  # no pooled text, and a map's latents without the autoencoder's shift


class Steering(Protocol):
    """The ControlNets of one loaded base. reads_latents: the map goes through the autoencoder first, which can be done ahead.

    fed: `UNSHIFTED`, where the network goes on as InstantX's for SD3 were trained, or nothing; for names of caches.
    """

    reads_latents: bool
    fed: dict[str, Any]

    @property
    def kind(self) -> Any:
        """The network's class in diffusers."""
        ...

    @property
    def denoiser(self) -> nn.Module:
        """The base's own network, which stays as it is."""
        ...

    def new(self) -> Any:
        """A silent ControlNet in fp32 for this base."""
        ...

    def condition(self, map_HWC: Any) -> Tensor:
        """A map as the network takes it: pixels (3, H, W) in [0, 1], where an inpainting map has its hole -1; or latents (C, h, w)."""
        ...

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """What the ControlNet adds to the base, for `Family.predict`."""
        ...


class UNetSteering:
    """Stable Diffusion 1.x, 2.x and XL."""

    reads_latents = False

    def __init__(self, base: Any, start: Start) -> None:
        self.base, self.start = base, start
        self.fed: dict[str, Any] = {}

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        return LimnControlNetModel.parent if unet_is_plain(self.base.unet, self.start) else LimnControlNetModel

    @property
    def denoiser(self) -> nn.Module:
        """See `Steering.denoiser`."""
        unet: nn.Module = self.base.unet
        return unet

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if the hint encoder would not end at the latents' size, or blocks are not there."""
        hint_channels, cell_px = self.start.hint_channels, self.base.cell_px
        shrinks = 2 ** (len(hint_channels) - 1)
        if shrinks != cell_px:
            raise BadRequest(
                f"hint_channels {hint_channels} shrink a condition {shrinks} times, but a latent cell is {cell_px} "
                f"pixels wide: give {cell_px.bit_length()} widths"
            )
        if self.base.inpaints:
            raise Mismatch(f"base {str(self.base.checkpoint.path)!r} is made for inpainting: train on the plain model it comes from")
        with quiet():
            if self.kind is LimnControlNetModel:
                net = unet_variant(self.base.unet, self.start)
            else:
                reads = {"conditioning_embedding_out_channels": hint_channels, "conditioning_channels": sum(self.start.channels)}
                net = self.kind.from_unet(self.base.unet, **reads).float()
        check_silent(net)
        return net

    def condition(self, map_HWC: Any) -> Tensor:
        """See `Steering.condition`."""
        return hint_pixels(Hint(map_HWC, self.start.kind), HOLE)[0]

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """See `Steering.residuals`."""
        down, middle = net(
            x_BCHW,
            t_B,
            encoder_hidden_states=text.tokens_BLD,
            controlnet_cond=condition_BCHW,
            added_cond_kwargs=added_conditions(text),
            return_dict=False,
        )
        return {"skips": [*down, middle]}


class TransformerSteering:
    """What SD3's and FLUX's share: maps as latents, and the first blocks of the transformer copied."""

    reads_latents = True
    latents_a_token = 1  # cells of the latents that the transformer takes as its channels

    def __init__(self, base: Any, start: Start) -> None:
        self.base, self.start = base, start
        self.fed: dict[str, Any] = {}
        if base.transformer.config.in_channels != base.latent_channels * self.latents_a_token:
            raise Mismatch(f"base {str(base.checkpoint.path)!r} has channels for a map or a hole: train on the plain model it comes from")
        if set(start.channels) != {3}:
            raise BadRequest(f"data.grey: {base.title} ControlNets read conditions through the autoencoder, in colour; leave it out")

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        raise NotImplementedError

    @property
    def denoiser(self) -> nn.Module:
        """See `Steering.denoiser`."""
        transformer: nn.Module = self.base.transformer
        return transformer

    def condition(self, map_HWC: Any) -> Tensor:
        """See `Steering.condition`: the mean, as rendering takes it; of stacked maps one after the other."""
        return torch.cat([encode(self.base.vae, one_HWC, self.base.place) for one_HWC in unstacked(map_HWC)], dim=1)[0]

    def _start(self, variant: Any, changes: Mapping[str, Any]) -> Any:
        """A network of the base's configuration with some entries changed, the copied parts holding the base's first weights."""
        config = {name: value for name, value in self.base.transformer.config.items() if not name.startswith("_")}
        with quiet():  # the library warns of its own parts
            net = self.kind.from_config({**config, **self.start.low_rank, **changes}).float()
        if self.start.variant != "lite":
            copy_encoder(net, self.base.transformer, variant.copied)
        return net


class SD3Steering(TransformerSteering):
    """Stable Diffusion 3 and 3.5."""

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        return LimnSD3ControlNetModel.parent if self.start.variant == "full" else LimnSD3ControlNetModel

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if more blocks are to be copied than can be."""
        whole = len(self.base.transformer.transformer_blocks)
        (count,) = counts(self.start.blocks, (whole // 2,), (whole - 1,), "the last joint block has no text and cannot be copied")
        dual = tuple(layer for layer in self.base.transformer.config.dual_attention_layers if layer < count)
        lite = half_as_wide(self.base.transformer.config) if self.start.variant == "lite" else {}
        if lite:
            lite["caption_projection_dim"] = lite["residual_channels"] // 2
        changes = {
            "num_layers": count,
            "extra_conditioning_channels": int(self.base.vae.config.latent_channels) * (len(self.start.channels) - 1),
            "dual_attention_layers": dual,
            # the pooled text is read in training, so rendering must not zero it
            "force_zeros_for_pooled_projection": False,
            **lite,
        }
        net = self._start(LimnSD3ControlNetModel, changes)
        for parameter in net.pos_embed_input.parameters():
            nn.init.zeros_(parameter)
        check_silent(net)
        return net

    def condition(self, map_HWC: Any) -> Tensor:
        """See `Steering.condition`."""
        latents_CHW = super().condition(map_HWC)
        shift = float(self.base.vae.config.shift_factor or 0.0) * float(self.base.vae.config.scaling_factor)
        return latents_CHW + shift if self.fed else latents_CHW

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """See `Steering.residuals`."""
        assert text.pooled_BD is not None
        found = net(
            x_BCHW,
            controlnet_cond=condition_BCHW,
            encoder_hidden_states=text.tokens_BLD,
            pooled_projections=torch.zeros_like(text.pooled_BD) if self.fed else text.pooled_BD,
            timestep=t_B,
            return_dict=False,
        )[0]
        return {place_of("blocks", found): list(found)}


class FluxSteering(TransformerSteering):
    """FLUX.1: some double blocks and some single ones."""

    latents_a_token = 4

    def __init__(self, base: Any, start: Start) -> None:
        super().__init__(base, start)
        self.positions = Positions(base.place)

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        plain = self.start.variant == "full" and len(self.start.channels) == 1
        return LimnFluxControlNetModel.parent if plain else LimnFluxControlNetModel

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if more blocks are to be copied than there are."""
        transformer = self.base.transformer
        whole = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
        double, single = counts(self.start.blocks, (min(4, whole[0]), 0), whole, "as many as the base has")
        changes = {"num_layers": double, "num_single_layers": single}
        if self.start.variant == "lite":
            changes |= half_as_wide(transformer.config)
        if len(self.start.channels) > 1:
            changes["maps"] = len(self.start.channels)
        net = self._start(LimnFluxControlNetModel, changes)
        for parameter in net.controlnet_x_embedder.parameters():
            nn.init.zeros_(parameter)
        check_silent(net)
        return net

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """See `Steering.residuals`."""
        blocks, single = net(
            hidden_states=pack(x_BCHW),
            controlnet_cond=pack(condition_BCHW),
            return_dict=False,
            **told(x_BCHW, t_B, text, guided=net.config.guidance_embeds),
            **self.positions(x_BCHW, text),
        )
        found = {place_of("blocks", blocks): blocks} if blocks else {}
        return found | ({place_of("single", single): single} if single else {})


def steering(base: Family, hint_channels: Sequence[int] = HINT_CHANNELS, blocks: Sequence[int] = (), **start: Any) -> Steering:
    """The ControlNets of a loaded base, begun as `Start` says.

    Raises:
        BadModel: a family whose ControlNets cannot be trained here.
        BadRequest: conditions that its ControlNets cannot read.
    """
    begins = Start(tuple(hint_channels), tuple(blocks), **start)
    match base.name:
        case "sd" | "sdxl":
            return UNetSteering(base, begins)
        case "sd3":
            return SD3Steering(base, begins)
        case "flux":
            return FluxSteering(base, begins)
    raise BadModel(f"base {str(base.checkpoint.path)!r} is {base.title}: ControlNets are trained for SD 1.x, 2.x, XL, 3 and FLUX.1")


def zero_layers(net: Any) -> dict[str, nn.Module]:
    """The layers that are zero at the start: after every block, and the last one that the condition goes through."""
    found: dict[str, nn.Module] = {}
    for group in ("controlnet_down_blocks", "controlnet_blocks", "controlnet_single_blocks"):
        found |= {f"{group}.{index}": layer for index, layer in enumerate(getattr(net, group, None) or [])}
    for name in ("controlnet_mid_block", "controlnet_cond_embedding.conv_out", "pos_embed_input.proj", "controlnet_x_embedder"):
        layer: Any = net
        for part in name.split("."):
            layer = getattr(layer, part, None)
        if layer is not None:
            found[name] = layer
    return found


def check_silent(net: Any) -> None:
    """Whether weight and bias of every zero layer are 0, so that training starts at the base's own pictures.

    Raises:
        Mismatch: one is not.
    """
    for name, layer in zero_layers(net).items():
        for part, parameter in layer.named_parameters():
            if parameter.count_nonzero():
                raise Mismatch(f"zero layer {name}.{part} is not zero: the library's initialisation has changed")
