"""What the families of rectified flows share: a transformer over patches of latents, and a scheduler whose config shifts the levels.

Axes: B rows, C channels, H and W pixels or latent cells, L tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from core.errors import BadRequest, Mismatch
from pipelines.checkpoint import Checkpoint
from pipelines.family import Family, Place, Shift
from pipelines.flow import flow_shift, flow_terminal
from pipelines.parameterisation import Parameterisation, Path
from pipelines.tokens import PATCH

THIS_BASE = "use a ControlNet trained for this base"


class FlowFamily(Family):
    """A loaded checkpoint; see `pipelines.family.Family`. patch: latent cells to a side of a token."""

    patch: int = PATCH

    def __init__(self, checkpoint: Checkpoint, place: Place, parts: Mapping[str, Any], scheduler: Mapping[str, Any]) -> None:
        super().__init__(checkpoint, place)
        self.parts, self.scheduler = dict(parts), scheduler
        self.transformer, self.vae = parts["transformer"], parts["vae"]
        self.path, self.parameterisation = Path.from_scheduler_config(scheduler), Parameterisation("flow")
        if self.path.kind != "flow":
            raise Mismatch(
                f"scheduler of {str(checkpoint.path)!r} is {scheduler.get('_class_name')} without flow: {self.title} is sampled as a flow; "
                "use FlowMatchEulerDiscreteScheduler's configuration"
            )

    def networks(self) -> Mapping[str, nn.Module]:
        """See `Family.networks`."""
        return {name: part for name, part in self.parts.items() if isinstance(part, nn.Module)}

    @property
    def side_px(self) -> int:
        """A patch's side."""
        return self.cell_px * self.patch

    @property
    def latent_channels(self) -> int:
        """The autoencoder's."""
        return int(self.vae.config.latent_channels)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels.

        Raises:
            BadRequest: the latents cannot be cut into patches.
        """
        if width % self.side_px or height % self.side_px:
            raise BadRequest(f"width {width}, height {height}: {self.title} draws multiples of {self.side_px} pixels; give such a size")
        return self.latent_channels, height // self.cell_px, width // self.cell_px

    def shift(self, width: int, height: int) -> Shift:
        """The checkpoint's own; where it grows with the picture, that for the picture's tokens."""
        return Shift(flow_shift(self.scheduler, (height // self.side_px) * (width // self.side_px)), flow_terminal(self.scheduler))

    def must_agree(self, checkpoint: Checkpoint, found: Mapping[str, Any], needed: Mapping[str, Any], remedy: str = THIS_BASE) -> None:
        """
        Raises:
            Mismatch: a ControlNet's config says otherwise than this model needs.
        """
        for key, value in found.items():
            if value != needed[key]:
                base = str(self.checkpoint.path)
                raise Mismatch(f"ControlNet {str(checkpoint.path)!r} has {key} {value}, the base model {base!r} {needed[key]}: {remedy}")


@dataclass(frozen=True, eq=False)
class SteeredTokens:
    """A ControlNet with the embedded tokens of one map, and a residual for each block; see `pipelines.family.PreparedControl`."""

    loaded: Any
    hint_1LD: Tensor
    positive_only: ClassVar[bool] = False  # both halves of guidance are steered

    @property
    def levels(self) -> int:
        """One residual a block."""
        return len(self.loaded.net.controlnet_blocks)

    @property
    def patch(self) -> int:
        """Residuals are tokens of so many latent cells to a side."""
        return int(self.loaded.net.config.patch_size)


def width_of(config: Mapping[str, Any], heads: int = 24, head_width: int = 128) -> int:
    """The width of a transformer's tokens; `heads` of `head_width` where its config leaves them out."""
    return int(config.get("num_attention_heads", heads)) * int(config.get("attention_head_dim", head_width))
