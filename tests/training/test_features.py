"""What residuals are measured beside: a ControlNet that repeats what the base says at each place is exactly as loud as the base."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipelines.engine import Engine
from pipelines.family import Drawing
from tests.training.test_families import BASES, PLACE
from training.features import beside, watched
from training.steering import steering, zero_layers


def repeating(net: Any) -> Any:
    """The network with layers after its blocks that pass on what they are given; the condition is still not heard."""
    with torch.no_grad():
        for name, layer in zero_layers(net).items():
            if name.startswith("controlnet_") and not name.startswith(("controlnet_cond", "controlnet_x")):
                assert isinstance(layer, nn.Conv2d | nn.Linear)
                nn.init.dirac_(layer.weight) if isinstance(layer, nn.Conv2d) else nn.init.eye_(layer.weight)
    return net.eval()


@pytest.mark.parametrize("family", BASES)
def test_a_net_that_repeats_the_base_is_as_loud_as_the_base(family: str, tmp_path: Path) -> None:
    base = Engine(PLACE).base(BASES[family](tmp_path / "base"))
    transformer: Any = getattr(base, "transformer", None)
    # all of FLUX's blocks can be copied, so that each residual belongs to one block; of SD3's the last one cannot
    blocks = (len(transformer.transformer_blocks), len(transformer.single_transformer_blocks)) if family == "flux" else ()
    control = steering(base, (4, 4, 8, 8), blocks)
    net = repeating(control.new())
    text = base.bind(base.encode_prompt("a red sphere"), Drawing(64, 64, 3.5))
    x = torch.randn(1, *base.latent_shape(64, 64), generator=torch.Generator().manual_seed(0))
    t = torch.tensor([400.0])
    with torch.inference_mode():
        condition = control.condition(np.zeros((64, 64, 3), np.uint8))[None]
        residuals = control.residuals(net, x, t, text, condition)
        with watched(control.denoiser) as sizes:
            base.predict(x, t, text, None)
        found = beside(residuals, sizes)
    assert len(found) == sum(len(levels) for levels in residuals.values())
    for place, ratio in found.items():
        # equal networks on equal inputs; SD3's residual also goes to the blocks after its own, whose features are larger
        assert float(ratio) == pytest.approx(1.0, rel=0.5 if family == "sd3" else 1e-5), place
    before = {place: len(tensors) for place, tensors in sizes.items()}
    base.predict(x, t, text, None)
    assert {place: len(tensors) for place, tensors in sizes.items()} == before  # nobody listens afterwards
