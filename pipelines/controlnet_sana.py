"""ControlNets of Sana: transformers that read the latents of a map and add to the tokens after the base's second block and the next ones.

Axes: B rows, C channels, H and W latent cells, L tokens, D width.
"""

from typing import Any

from torch import Tensor, nn

from pipelines.family import Place, Residuals, Text
from pipelines.flow_family import SteeredTokens
from pipelines.tokens import place_of


class LoadedControlNet:
    """A ControlNet that is given its map's tokens, embedded once, in the place of latents."""

    def __init__(self, net: Any, place: Place) -> None:
        self.net, self.place = net, place
        self.hint_embedding: nn.Module = net.input_block
        net.input_block = nn.Identity()
        net.patch_embed = _PatchesOnly(net.patch_embed)

    def embed(self, latents_BCHW: Tensor) -> Tensor:
        """The tokens (B, L, D) of a map's latents."""
        embedded: Tensor = self.hint_embedding(self.net.patch_embed(latents_BCHW.to(self.place.dtype)))
        return embedded


class _PatchesOnly(nn.Module):
    """A patch embedding that lets tokens through as they are."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) of latents (B, C, H, W), or tokens."""
        tokens: Tensor = x if x.ndim == 3 else self.embedding(x)
        return tokens


class SteeredControlNet(SteeredTokens):
    """A ControlNet with one map."""

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        """What to add after the transformer's blocks from the second on; unscaled."""
        found = self.loaded.net(
            x_BCHW.to(self.loaded.place.dtype),
            encoder_hidden_states=text.tokens_BLD,
            encoder_attention_mask=text.mask_BL,
            timestep=t.expand(x_BCHW.shape[0]),
            controlnet_cond=self.hint_1LD,
            return_dict=False,
        )[0]
        return {place_of("blocks", found): list(found)}
