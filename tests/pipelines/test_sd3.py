"""Stable Diffusion 3 by itself: what is computed once, what its text encoders read, what it refuses, and how it does in fewer bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import BadModel, BadRequest, Mismatch
from pipelines.canvas import begin
from pipelines.checkpoint import Folder
from pipelines.denoise import denoise, seeded_noise
from pipelines.families.sd3 import StableDiffusion3
from pipelines.family import Hint, Text
from pipelines.steering import Steering
from tests.pipelines import sd3_parity
from tests.pipelines.sd3_parity import PLACE, PROMPT, SEED, SIZE, drawn, drawn_map, picture, plan_of, steered


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd3_parity.build(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def families(models: Path) -> dict[str, StableDiffusion3]:
    return sd3_parity.load(models)


def test_each_picture_of_a_batch_is_the_one_drawn_alone(models: Path, families: dict[str, StableDiffusion3]) -> None:
    plan = plan_of(families["3"], *steered(families["3"], models, ["plain"], mode="control"))
    noise = seeded_noise([SEED + 1], families["3"].latent_shape(**SIZE), PLACE.device)
    alone = denoise(families["3"], plan, noise, lambda i, denoised: None)
    torch.testing.assert_close(drawn(families["3"], plan, count=2)[1:], alone, rtol=0, atol=1e-5)  # another batch size adds up otherwise


def test_a_map_is_encoded_and_embedded_once(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """Once a picture, the same whatever the global generator holds, and the net is asked inside its window alone."""
    family, calls = families["3"], dict.fromkeys(("encode", "embed", "net"), 0)
    net = family.load_control(Folder(models / "net-plain"))

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    hooks = [
        family.vae.encoder.register_forward_hook(count("encode")),
        net.hint_embedding.register_forward_hook(count("embed")),
        net.net.register_forward_hook(count("net")),
    ]
    control = family.prepare(net, Hint(drawn_map(0), "tile"))
    first = drawn(family, plan_of(family, Steering(control, start=0.3, end=0.8)))
    assert calls == {"encode": 1, "embed": 1, "net": 2}
    torch.manual_seed(99)
    again = Steering(family.prepare(net, Hint(drawn_map(0), "tile")), start=0.3, end=0.8)
    assert torch.equal(first, drawn(family, plan_of(family, again)))
    drawn(family, plan_of(family, Steering(control, weight=0.0)))
    assert calls["net"] == 4
    for hook in hooks:
        hook.remove()


def test_prompts_longer_than_a_window(families: dict[str, StableDiffusion3]) -> None:
    """CLIP reads all of it, in windows; a shorter negative prompt is filled with the empty prompt's."""
    family = families["3"]
    long = "a red sphere left of a blue cube on grass at sunset, " * 20
    text = family.encode_prompt(long)
    windows = (text.tokens_BLD.shape[1] - 256) // 77
    assert windows > 1
    assert text.tokens_BLD.shape[1] == windows * 77 + 256
    assert text.dropped  # by T5
    plan = replace(plan_of(family), positive=text)
    assert drawn(family, plan).isfinite().all()
    assert family.encode_prompt("").empty


def test_a_checkpoint_whose_t5_was_not_fetched_is_whole(models: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(models / "base-3", folder, ignore=shutil.ignore_patterns("text_encoder_3", "tokenizer_3"))
    family = StableDiffusion3.load(Folder(folder), PLACE)
    assert "text_encoder_3" not in family.networks()
    assert family.encode_prompt(PROMPT).tokens_BLD[:, 77:].abs().max() == 0.0
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(BadModel, match=r"has no 'text_encoder_2': a Stable Diffusion 3 or 3.5 model needs transformer"):
        StableDiffusion3.load(Folder(folder), PLACE)


def test_sizes_the_transformer_cannot_draw(families: dict[str, StableDiffusion3]) -> None:
    assert families["3"].latent_shape(192, 96) == (16, 12, 24)
    for width in (72, 208):
        with pytest.raises(BadRequest, match=rf"width = {width}: this model draws in patches of 16 pixels; give a multiple up to 192"):
            families["3"].latent_shape(width, 64)


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        (Mismatch, {"_class_name": "ControlNetModel"}, r"is a ControlNet for Stable Diffusion or SDXL, .* is Stable Diffusion 3"),
        (Mismatch, {"_class_name": "T2IAdapter"}, r"is a T2I-Adapter"),
        (BadModel, {"_class_name": "SD3Transformer2DModel"}, r"is SD3Transformer2DModel, not a SD3ControlNetModel"),
        (Mismatch, {"_class_name": "SD3ControlNetModel"}, r"has width 1152, the base model .* 32: use a ControlNet trained for this base"),
        (Mismatch, {"qk_norm": "rms_norm"}, r"has qk_norm rms_norm, the base model .* None"),
        (Mismatch, {"joint_attention_dim": 64}, r"has joint_attention_dim 64, the base model .* 48"),
        (Mismatch, {"in_channels": 4}, r"has in_channels 4, the base model .* 16"),
    ],
)
def test_controlnets_that_do_not_fit(
    kind: type[Exception], config: dict[str, Any], message: str, models: Path, tmp_path: Path, families: dict[str, StableDiffusion3]
) -> None:
    import json

    own = {} if "_class_name" in config else json.loads((models / "net-plain" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(kind, match=message):
        families["3"].check_control(Folder(tmp_path))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fewer_bits(dtype: torch.dtype, models: Path, families: dict[str, StableDiffusion3]) -> None:
    """All parts take what the others give, whatever they compute in; bfloat16 differs by about 1 % of the deviation here."""
    family = StableDiffusion3.load(Folder(models / "base-3"), replace(PLACE, dtype=dtype))
    canvas = begin(family, picture(), strength=0.7)
    got = drawn(family, plan_of(family, *steered(family, models, ["plain"], weight=0.5), strength=0.7, canvas=canvas))
    expected = drawn(
        families["3"], plan_of(families["3"], *steered(families["3"], models, ["plain"], weight=0.5), strength=0.7, canvas=canvas)
    )
    assert got.dtype == torch.float32
    assert (got - expected).std() < 0.03 * expected.std()
    assert family.decode(got).isfinite().all()


class HostReads(TorchDispatchMode):
    """Counts how often a number is fetched from a tensor, which on a device waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(models: Path, families: dict[str, StableDiffusion3]) -> None:
    """A network's output and a ControlNet's residuals are asked for without reading a number back."""
    family = families["3"]
    control, text = steered(family, models, ["plain"])[0].control, plan_of(family).positive
    x, t = torch.randn(1, *family.latent_shape(**SIZE)), torch.tensor(500.0)
    assert isinstance(text, Text)
    with torch.inference_mode(), HostReads() as reads:
        family.predict(x, t, text, control.residuals(x, t, text))
    assert reads.count == 0
