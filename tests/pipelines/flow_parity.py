"""The one loop on a flow family, for comparisons with diffusers' own pipelines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines import samplers
from pipelines.canvas import begin
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.family import Drawing, Family, Hint, PreparedControl, Text
from pipelines.schedules import make_times
from pipelines.steering import Steering
from tests.pipelines.scenes import HEIGHT, NEGATIVE, PLACE, PROMPT, SEED, STEPS, WAYS, WIDTH, left_half, picture

GUIDANCE = 4.0


def drawing(family: Family, prompt: str, guidance_scale: float, *, negative: bool = False) -> Text:
    """A prompt as the network is told it."""
    return family.bind(family.encode_prompt(prompt), Drawing(WIDTH, HEIGHT, guidance_scale, negative))


def plan_of(
    family: Family,
    *controls: Steering,
    guidance: float = GUIDANCE,
    told_scale: float = 1.0,
    strength: float = 1.0,
    prompt: str = PROMPT,
    **options: Any,
) -> Plan:
    """A plan with the family's own sampler. guidance: of a second forward; told_scale: what the network is told."""
    defaults, shift = {"sampler": "euler", "schedule": "uniform"} | dict(family.defaults), family.shift(WIDTH, HEIGHT)
    sampler = samplers.get(defaults["sampler"])
    times = make_times(family.path, defaults["schedule"], STEPS, sampler.grid, shift=shift.factor, terminal=shift.terminal)
    return Plan(
        sampler=sampler,
        times=times.tail(strength),
        positive=drawing(family, prompt, told_scale),
        negative=drawing(family, NEGATIVE, told_scale, negative=True) if guidance != 1.0 else None,
        guidance_scale=guidance,
        controls=tuple(controls),
        **options,
    )


def drawn(family: Family, plan: Plan, count: int = 1) -> Tensor:
    """Final latents of the one loop."""
    noise = seeded_noise([SEED + i for i in range(count)], family.latent_shape(WIDTH, HEIGHT), PLACE.device)
    return denoise(family, plan, noise, lambda i, denoised: None)


def ours(
    family: Family,
    controls: Sequence[Steering] = (),
    *,
    true_scale: float = 1.0,
    count: int = 1,
    image_HWC: NDArray[np.uint8] | None = None,
    mask_HW: NDArray[np.uint8] | None = None,
    strength: float = 1.0,
    **plan: Any,
) -> Tensor:
    """The same, from a picture and a mask too."""
    canvas = None if image_HWC is None else begin(family, image_HWC, mask_HW, strength=strength)
    return drawn(family, plan_of(family, *controls, guidance=true_scale, strength=strength, canvas=canvas, **plan), count)


def steered(family: Family, models: Path, nets: Sequence[str], **steering: Any) -> tuple[Steering, ...]:
    """Controls from the folders `net-…`, each with a map of its own; steering: one value for all, or a list with one for each."""
    controls = []
    for i, net in enumerate(nets):
        own = {key: value[i] if isinstance(value, list) else value for key, value in steering.items()}
        hint = own.pop("hint", Hint(picture(i), "tile"))
        controls.append(Steering(family.prepare(family.load_control(Folder(models / f"net-{net}")), hint), **own))
    return tuple(controls)


def check_embedded_once(family: Family, net: Any, encoder: nn.Module) -> None:
    """A map is encoded and embedded once a picture, whatever the global generator holds; the net is asked in its window alone."""
    calls = dict.fromkeys(("encode", "embed", "net"), 0)

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls[name] + 1})

    modules = {"encode": encoder, "embed": net.hint_embedding, "net": net.net}
    hooks = [module.register_forward_hook(count(name)) for name, module in modules.items()]
    control = family.prepare(net, Hint(picture(0), "tile"))
    first = drawn(family, plan_of(family, Steering(control, start=0.3, end=0.8)))
    assert calls == {"encode": 1, "embed": 1, "net": 2}
    torch.manual_seed(99)
    again = Steering(family.prepare(net, Hint(picture(0), "tile")), start=0.3, end=0.8)
    assert torch.equal(first, drawn(family, plan_of(family, again)))
    drawn(family, plan_of(family, Steering(control, weight=0.0)))
    assert calls["net"] == 4
    for hook in hooks:
        hook.remove()


def check_fewer_bits(whole: Family, fewer: Family, models: Path, bound: float, net: str = "plain") -> None:
    """All parts take what the others give; the pictures differ by less than `bound` of their deviation, a few of bfloat16's last bits."""
    given: dict[str, Any] = WAYS["img2img"] | {"true_scale": GUIDANCE}
    got, expected = (ours(family, steered(family, models, [net], weight=0.5), **given) for family in (fewer, whole))
    assert got.dtype == torch.float32
    assert (got - expected).std() < bound * expected.std()
    assert fewer.decode(got).isfinite().all()


def check_region(family: Family, models: Path, net: str) -> None:
    """On the left half a masked control's residuals are what they are without a mask, on the right nothing; tokens that are no part of the
    picture (text, filling) get the region's share. A mask that is white everywhere changes nothing.
    """
    x = torch.randn(1, *family.latent_shape(WIDTH, HEIGHT), generator=torch.Generator().manual_seed(SEED))
    t, text, mask_HW = torch.tensor(500.0), drawing(family, PROMPT, 1.0), torch.from_numpy(left_half() / np.float32(255))
    (whole,), (part,) = steered(family, models, [net]), steered(family, models, [net], mask_HW=mask_HW)
    for name, levels in part.residuals(x, t, text).items():
        for got, expected in zip(levels, whole.residuals(x, t, text)[name], strict=True):
            rows, reference = (one[:, :24].reshape(1, 4, 6, -1) for one in (got, expected))
            assert torch.equal(rows[:, :, :3], reference[:, :, :3])
            assert not rows[:, :, 3:].any()
            torch.testing.assert_close(got[:, 24:], expected[:, 24:] * 0.5)
    (ones,) = steered(family, models, [net], mask_HW=torch.ones(HEIGHT, WIDTH))
    assert torch.equal(ours(family, [ones]), ours(family, [whole]))


def check_batch(family: Family, controls: Sequence[Steering]) -> None:
    """Each picture of a batch is the one drawn alone, to rounding: another batch size adds up otherwise."""
    plan = plan_of(family, *controls)
    noise = seeded_noise([SEED + 1], family.latent_shape(WIDTH, HEIGHT), PLACE.device)
    alone = denoise(family, plan, noise, lambda i, denoised: None)
    torch.testing.assert_close(drawn(family, plan, count=2)[1:], alone, rtol=0, atol=1e-5)


def check_misfit(family: Family, net: Path, folder: Path, config: dict[str, Any], refusal: tuple[type[Exception], str]) -> None:
    """A ControlNet's config with other entries, or one with but a class, is refused with these words."""
    own = {} if "_class_name" in config else json.loads((net / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(own | config))
    with pytest.raises(refusal[0], match=refusal[1]):
        family.check_control(Folder(folder))


class HostReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how often the host asks a tensor for its numbers, or for their count, which on a device waits for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def host_reads(family: Family, control: PreparedControl) -> int:
    """How often a step waits for the device, in the control's forward and in the base's, after the first."""
    x, t = torch.randn(2, *family.latent_shape(WIDTH, HEIGHT)), torch.tensor(500.0)
    text = Text.rows([drawing(family, NEGATIVE, 1.0), drawing(family, PROMPT, 1.0)])
    reads = HostReads()
    with torch.inference_mode():
        family.predict(x, t, text, control.residuals(x, t, text))
        with reads:
            family.predict(x, t, text, control.residuals(x, t, text))
    return reads.count
