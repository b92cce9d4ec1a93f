"""The one loop's own rules: windows, modes, weights, region masks, guidance, seeds, and what happens to numbers that are not finite."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from core.errors import BadModel, Cancelled, Mismatch
from core.request import Mode
from pipelines import samplers
from pipelines.checkpoint import Folder
from pipelines.denoise import Plan, Steering, denoise, level_factors, seeded_noise
from pipelines.families.sd import StableDiffusion
from pipelines.family import Hint, Place, Residuals, Text
from pipelines.mixing import Rows
from pipelines.schedules import make_times
from pipelines.t2i_adapter import SteeredAdapter
from tests.tinymodels import control_map

PLACE = Place(torch.device("cpu"), torch.float32)
LEVELS = ((2, 8, 8), (2, 4, 4), (3, 2, 2), (3, 2, 2))


class Ones:
    """A prepared control whose residuals are all one, at four levels; it remembers how many rows it was asked for."""

    positive_only = False
    levels = len(LEVELS)
    patch = 1

    def __init__(self) -> None:
        self.rows: list[int] = []

    def residuals(self, x_BCHW: Tensor, t: Tensor, text: Text) -> Residuals:
        assert text.tokens_BLD.shape[0] == x_BCHW.shape[0]
        self.rows.append(x_BCHW.shape[0])
        return {"skips": [torch.ones(x_BCHW.shape[0], *level) for level in LEVELS]}


class Listener:
    """The part of a family that the loop uses; it remembers the residuals it was given and answers with zeros."""

    place = PLACE
    residuals_shared = False

    def networks(self) -> dict[str, torch.nn.Module]:
        return {}

    def after_guidance(self, guided_BCHW: Tensor, prompted_BCHW: Tensor) -> Tensor:
        return guided_BCHW

    def __init__(self, family: StableDiffusion) -> None:
        self.path, self.parameterisation = family.path, family.parameterisation
        self.heard: list[Residuals | None] = []

    def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
        self.heard.append(residuals)
        return torch.zeros_like(x_BCHW)


@pytest.fixture(scope="module")
def family(base: Path) -> StableDiffusion:
    return StableDiffusion.load(Folder(base), PLACE)


def make_plan(family: StableDiffusion, *controls: Steering, steps: int = 4, guidance: float = 4.0) -> Plan:
    sampler = samplers.get("euler")
    return Plan(
        sampler=sampler,
        times=make_times(family.path, "uniform", steps, sampler.grid),
        positive=family.encode_prompt("a red sphere"),
        negative=family.encode_prompt("") if guidance != 1.0 else None,
        guidance_scale=guidance,
        controls=controls,
    )


def heard(family: StableDiffusion, *controls: Steering, guidance: float = 4.0, count: int = 2) -> list[Tensor]:
    """The residuals of the first step."""
    listener: Any = Listener(family)
    noise = seeded_noise(range(count), (4, 8, 8), PLACE.device)
    denoise(listener, make_plan(family, *controls, guidance=guidance), noise, lambda i, denoised: None)
    assert listener.heard[0] is not None
    residuals: list[Tensor] = listener.heard[0]["skips"]
    return residuals


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.2, 0.7), (0.0, 0.5), (0.33, 0.34), (0.5, 0.5), (1.0, 1.0), (0.1, 0.3)])
@pytest.mark.parametrize("steps", [1, 3, 10, 20, 37])
def test_windows_are_diffusers_windows(start: float, end: float, steps: int) -> None:
    steering = Steering(Ones(), start=start, end=end)
    for i in range(steps):
        kept = 1.0 - float(i / steps < start or (i + 1) / steps > end)  # pipeline_controlnet.py, "controlnet_keep"
        assert steering.active(i, steps) == bool(kept)


def test_thirteen_levels_have_the_published_curves() -> None:
    assert level_factors("balanced", 13) == [1.0] * 13
    for mode in ("prompt", "control"):
        assert level_factors(mode, 13) == pytest.approx([0.825 ** (12 - i) for i in range(13)])
    assert level_factors("guess", 13) == pytest.approx(torch.logspace(-1, 0, 13).tolist(), rel=1e-6)
    assert level_factors("prompt", 7) == pytest.approx([0.825 ** (6 - i) for i in range(7)])  # the middle stays whole


def test_adapters_fade_by_the_published_curve_alone_and_in_rows(family: StableDiffusion) -> None:
    """sd-webui-controlnet, hook.py: 0.25, 0.62, 0.825 and 1 for the four features of a T2I-Adapter."""
    adapter, text = SteeredAdapter(tuple(torch.ones(1, 2, 8 >> i, 8 >> i) for i in range(4))), family.encode_prompt("a cube")
    for control in (adapter, Rows((adapter, adapter))):
        for mode, curve in (("balanced", (1.0,) * 4), ("prompt", (0.25, 0.62, 0.825, 1.0)), ("control", (0.25, 0.62, 0.825, 1.0))):
            found = Steering(control, weight=0.5, mode=mode).residuals(torch.zeros(2, 4, 8, 8), torch.tensor(1.0), text)["features"]
            assert [float(feature.mean()) for feature in found] == pytest.approx([0.5 * factor for factor in curve])
    three = SteeredAdapter(adapter.features[:3])
    faded = Steering(three, mode="prompt").residuals(torch.zeros(1, 4, 8, 8), torch.tensor(1.0), text)["features"]
    assert [float(feature.mean()) for feature in faded] == pytest.approx([0.825**2, 0.825, 1.0])


@pytest.mark.parametrize(("mode", "on_negative"), [("balanced", True), ("prompt", True), ("control", False), ("guess", False)])
def test_modes_and_guidance(mode: Mode, on_negative: bool, family: StableDiffusion) -> None:
    ones = Ones()
    for level, factor, residual in zip(LEVELS, level_factors(mode, 4), heard(family, Steering(ones, weight=0.5, mode=mode)), strict=True):
        assert residual.shape == (4, *level)
        torch.testing.assert_close(residual[2:], torch.full((2, *level), 0.5 * factor))
        torch.testing.assert_close(residual[:2], torch.full((2, *level), 0.5 * factor * on_negative))
    assert set(ones.rows) == {4 if on_negative else 2}


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_without_guidance_there_is_no_negative_half(mode: Mode, family: StableDiffusion) -> None:
    for residual, factor in zip(heard(family, Steering(Ones(), mode=mode), guidance=1.0), level_factors(mode, 4), strict=True):
        torch.testing.assert_close(residual, torch.full_like(residual, factor))
        assert residual.shape[0] == 2


def test_controls_of_different_modes_are_summed_half_by_half(family: StableDiffusion) -> None:
    both = heard(family, Steering(Ones(), weight=0.3), Steering(Ones(), weight=0.5, mode="control"), Steering(Ones(), weight=0.2))
    for residual, factor in zip(both, level_factors("control", 4), strict=True):
        torch.testing.assert_close(residual[:2], torch.full_like(residual[:2], 0.5))
        torch.testing.assert_close(residual[2:], torch.full_like(residual[2:], 0.5 + 0.5 * factor))


def test_region_masks_are_averaged_over_the_cells_of_each_level(family: StableDiffusion) -> None:
    mask = torch.zeros(64, 64)
    mask[:, :24] = 1.0
    for level, residual in zip(LEVELS, heard(family, Steering(Ones(), weight=0.5, mask_HW=mask)), strict=True):
        cells = level[2]
        columns = [0.5 * min(1.0, max(0.0, 24 / 64 * cells - column)) for column in range(cells)]
        torch.testing.assert_close(residual, torch.tensor(columns).expand(4, *level))


def test_a_pooled_control_takes_no_mask_and_leaves_the_negative_half_alone(family: StableDiffusion) -> None:
    pooled = Ones()
    pooled.positive_only = True
    for residual in heard(family, Steering(pooled)):
        assert residual[:2].abs().max() == 0.0
        assert residual[2:].min() == 1.0
    with pytest.raises(Mismatch, match="knows no region"):
        Steering(pooled, mask_HW=torch.ones(8, 8))


@pytest.mark.parametrize(("guidance", "which"), [(0.0, "negative"), (1.0, "positive")])
def test_guidance_runs_from_the_negative_to_the_prompt(guidance: float, which: str, family: StableDiffusion) -> None:
    """0 is the negative prompt alone, 1 the prompt alone."""
    plan = make_plan(family, guidance=guidance)
    alone = replace(plan, positive=family.encode_prompt("" if which == "negative" else "a red sphere"), negative=None, guidance_scale=1.0)
    got, expected = (denoise(family, p, seeded_noise([3], (4, 8, 8), PLACE.device), lambda i, denoised: None) for p in (plan, alone))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_noise_is_a_generator_for_each_picture() -> None:
    noise = seeded_noise([5, 6], (4, 8, 8), PLACE.device)
    first, second = noise(), noise()
    for row, seed in enumerate((5, 6)):
        generator = torch.Generator("cpu").manual_seed(seed)
        for draw in (first, second):
            assert torch.equal(draw[row : row + 1], torch.randn((1, 4, 8, 8), generator=generator))


def test_exceptions_of_the_caller_pass_through(family: StableDiffusion) -> None:
    def on_step(i: int, denoised: Tensor) -> None:
        assert denoised.shape == (1, 4, 8, 8)
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        denoise(family, make_plan(family), seeded_noise([0], (4, 8, 8), PLACE.device), on_step)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_no_step_waits_for_the_device(sampler: str, family: StableDiffusion, controlnets: list[Path]) -> None:
    """A number read off a tensor is what makes a GPU wait; the loop reads one, at the end, to see that all is finite."""

    aten = torch.ops.aten
    reading = {aten.is_nonzero.default, aten.item.default, aten._local_scalar_dense.default}

    class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves this class untyped
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            # The tables of a path are float64 on the host: what is read off them waits for nobody.
            self.count += func in reading and args[0].dtype != torch.float64
            return func(*args, **(kwargs or {}))

    control = Steering(
        family.prepare(family.load_control(Folder(controlnets[0])), Hint(control_map(0), "canny")), weight=0.5, end=0.8, mode="control"
    )
    counts = []
    for steps in (2, 6):
        plan = replace(make_plan(family, control, steps=steps), sampler=samplers.get(sampler))
        with Reads() as reads:  # type: ignore[no-untyped-call]
            denoise(family, plan, seeded_noise([0, 1], (4, 8, 8), PLACE.device), lambda i, denoised: None)
        counts.append(reads.count)
    assert counts == [1, 1]


@pytest.mark.parametrize("step", range(4))
def test_not_a_number_at_any_step_is_caught(step: int, family: StableDiffusion) -> None:
    class Broken(Listener):
        def predict(self, x_BCHW: Tensor, t: Tensor, text: Text, residuals: Residuals | None) -> Tensor:
            out = super().predict(x_BCHW, t, text, residuals)
            return out / 0.0 if len(self.heard) == step + 1 else out

    broken: Any = Broken(family)
    with pytest.raises(BadModel, match=r"the latents are not finite after denoising in torch.float32"):
        denoise(broken, make_plan(family), seeded_noise([0], (4, 8, 8), PLACE.device), lambda i, denoised: None)


def test_bgr_and_pooled_controlnets_are_diffusers_too(base: Path, controlnets: list[Path], tmp_path: Path) -> None:
    """The hint taken out of the network gives what the network gave with it in, for every published variant."""
    import json
    import shutil

    from diffusers import ControlNetModel

    from pipelines.images import condition_to_tensor

    family = StableDiffusion.load(Folder(base), PLACE)
    x, t, text = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor(500.0), family.encode_prompt("a cube")
    text = Text.rows([text, text])
    changes: tuple[dict[str, Any], ...] = ({}, {"controlnet_conditioning_channel_order": "bgr"}, {"global_pool_conditions": True})
    for i, change in enumerate(changes):
        folder = Path(shutil.copytree(controlnets[0], tmp_path / str(i)))
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        prepared = family.prepare(family.load_control(Folder(folder)), Hint(control_map(0), "canny"))
        hint = condition_to_tensor(control_map(0))[None].expand(2, -1, -1, -1)
        with torch.no_grad():
            down, middle = ControlNetModel.from_pretrained(folder)(x, t, text.tokens_BLD, hint, return_dict=False)
            got = prepared.residuals(x, t, text)["skips"]
        assert prepared.positive_only == ("global_pool_conditions" in change)
        # The hint is embedded once instead of twice, so convolutions may add up in another order.
        for one, another in zip(got, [*down, middle], strict=True):
            torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-5)
