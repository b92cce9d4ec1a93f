"""How each family's ControlNet begins, and how it is heard while it learns: the base's encoder copied, everything it says zero.

What the network is fed here is what rendering feeds it (`pipelines.controlnet*`); only that rendering embeds the map once, and training at
every step. Axes: B rows, C channels, H and W pixels or latent cells, L tokens, D width.
Source: Zhang et al., Adding Conditional Control to Text-to-Image Diffusion Models, 2023, section 3.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.controlnet import added_conditions
from pipelines.controlnet_flux import Positions, told
from pipelines.family import Family, Residuals, Text
from pipelines.images import condition_to_tensor, picture_to_tensor
from pipelines.loading import quiet
from pipelines.tokens import pack, place_of
from pipelines.vae import encode_pixels
from training.config import HINT_CHANNELS as HINT_CHANNELS


class Steering(Protocol):
    """The ControlNets of one loaded base. reads_latents: the map goes through the autoencoder first, which can be done ahead."""

    reads_latents: bool

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
        """A map as the network takes it: pixels (3, H, W) in [0, 1], or latents (C, h, w)."""
        ...

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """What the ControlNet adds to the base, for `Family.predict`."""
        ...


class UNetSteering:
    """Stable Diffusion 1.x, 2.x and XL."""

    reads_latents = False

    def __init__(self, base: Any, hint_channels: Sequence[int], blocks: Sequence[int]) -> None:
        self.base, self.hint_channels = base, tuple(hint_channels)
        if blocks:
            raise BadRequest(f"blocks {list(blocks)}: {base.title} ControlNets copy the whole encoder; leave `blocks` out")

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        from diffusers import ControlNetModel

        return ControlNetModel

    @property
    def denoiser(self) -> nn.Module:
        """See `Steering.denoiser`."""
        unet: nn.Module = self.base.unet
        return unet

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if the hint encoder would not end at the latents' size."""
        shrinks, cell_px = 2 ** (len(self.hint_channels) - 1), self.base.cell_px
        if shrinks != cell_px:
            raise BadRequest(
                f"hint_channels {self.hint_channels} shrink a condition {shrinks} times, but a latent cell is {cell_px} "
                f"pixels wide: give {cell_px.bit_length()} widths"
            )
        if self.base.inpaints:
            raise Mismatch(f"base {str(self.base.checkpoint.path)!r} is made for inpainting: train on the plain model it comes from")
        net = self.kind.from_unet(self.base.unet, conditioning_embedding_out_channels=self.hint_channels).float()
        check_silent(net)
        return net

    def condition(self, map_HWC: Any) -> Tensor:
        """See `Steering.condition`."""
        return condition_to_tensor(map_HWC)

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

    def __init__(self, base: Any, blocks: Sequence[int]) -> None:
        self.base = base
        self.blocks = tuple(blocks)

    @property
    def denoiser(self) -> nn.Module:
        """See `Steering.denoiser`."""
        transformer: nn.Module = self.base.transformer
        return transformer

    def condition(self, map_HWC: Any) -> Tensor:
        """See `Steering.condition`: the mean, as rendering takes it."""
        return encode_pixels(self.base.vae, picture_to_tensor(map_HWC)[None], self.base.place)[0]

    def _start(self, kind: Any, changes: Mapping[str, Any], copied: Sequence[str]) -> Any:
        """A network of the base's configuration with some entries changed, the copied parts holding the base's first weights."""
        config = {name: value for name, value in self.base.transformer.config.items() if not name.startswith("_")}
        with quiet():  # the library warns of its own parts
            net = kind.from_config({**config, **changes}).float()
        for part in copied:
            mine = getattr(net, part).state_dict()
            theirs = getattr(self.base.transformer, part).state_dict()
            getattr(net, part).load_state_dict({name: theirs[name] for name in mine})
        return net


class SD3Steering(TransformerSteering):
    """Stable Diffusion 3 and 3.5."""

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        from diffusers import SD3ControlNetModel

        return SD3ControlNetModel

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if more blocks are to be copied than can be."""
        whole = len(self.base.transformer.transformer_blocks)
        (count,) = _counts(self.blocks, (whole // 2,), (whole - 1,), "the last joint block has no text and cannot be copied")
        dual = tuple(layer for layer in self.base.transformer.config.dual_attention_layers if layer < count)
        changes = {
            "num_layers": count,
            "extra_conditioning_channels": 0,
            "dual_attention_layers": dual,
            # the pooled text is read in training, so rendering must not zero it
            "force_zeros_for_pooled_projection": False,
        }
        net = self._start(self.kind, changes, ("pos_embed", "time_text_embed", "context_embedder", "transformer_blocks"))
        for parameter in net.pos_embed_input.parameters():
            nn.init.zeros_(parameter)
        check_silent(net)
        return net

    def residuals(self, net: Any, x_BCHW: Tensor, t_B: Tensor, text: Text, condition_BCHW: Tensor) -> Residuals:
        """See `Steering.residuals`."""
        found = net(
            x_BCHW,
            controlnet_cond=condition_BCHW,
            encoder_hidden_states=text.tokens_BLD,
            pooled_projections=text.pooled_BD,
            timestep=t_B,
            return_dict=False,
        )[0]
        return {place_of("blocks", found): list(found)}


class FluxSteering(TransformerSteering):
    """FLUX.1: some double blocks and some single ones."""

    def __init__(self, base: Any, blocks: Sequence[int]) -> None:
        super().__init__(base, blocks)
        self.positions = Positions(base.place)

    @property
    def kind(self) -> Any:
        """See `Steering.kind`."""
        from diffusers import FluxControlNetModel

        return FluxControlNetModel

    def new(self) -> Any:
        """See `Steering.new`. Raises BadRequest if more blocks are to be copied than there are."""
        transformer = self.base.transformer
        whole = len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)
        double, single = _counts(self.blocks, (min(4, whole[0]), 0), whole, "as many as the base has")
        copied = ("time_text_embed", "context_embedder", "x_embedder", "transformer_blocks", "single_transformer_blocks")
        net = self._start(self.kind, {"num_layers": double, "num_single_layers": single}, copied)
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


def steering(base: Family, hint_channels: Sequence[int] = HINT_CHANNELS, blocks: Sequence[int] = ()) -> Steering:
    """The ControlNets of a loaded base. blocks: how many are copied (SD3: joint; FLUX: double and single); empty for the usual numbers.

    Raises:
        BadModel: a family whose ControlNets cannot be trained here.
    """
    match base.name:
        case "sd" | "sdxl":
            return UNetSteering(base, hint_channels, blocks)
        case "sd3":
            return SD3Steering(base, blocks)
        case "flux":
            return FluxSteering(base, blocks)
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


def _counts(given: Sequence[int], usual: Sequence[int], most: Sequence[int], why: str) -> tuple[int, ...]:
    counts = tuple(given) or tuple(usual)
    if len(counts) != len(most) or not all(0 <= count <= limit for count, limit in zip(counts, most, strict=True)) or not sum(counts):
        raise BadRequest(f"blocks {list(counts)}: give {len(most)} numbers up to {list(most)} ({why})")
    return counts
