"""Several conditions in one ControlNet: trained on a stack, rendered from one control for each, by every family."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from core.errors import BadRequest, LimnError, Mismatch
from core.images import decode
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine
from pipelines.family import Hint
from pipelines.planning import Given, stages_of, with_controls
from renderer import Renderer, examine
from tests.training.test_families import BASES, PLACE, speaking
from training.config import ControlNetConfig
from training.export import has_single_file, write_folder
from training.randomness import Draws
from training.run import train_controlnet
from training.texts import Texts

KINDS = ("canny", "depth")


@pytest.fixture(scope="module", params=BASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """A base, a ControlNet that was trained on edges and depth for it and then made to speak, and its task."""
    home = tmp_path_factory.mktemp("stack")
    torch.manual_seed(0)  # of the networks' random weights
    base = BASES[request.param](home / "base")
    data, rng = home / "data", np.random.default_rng(0)
    for folder in ("images", *KINDS):
        (data / folder).mkdir(parents=True)
        for number in range(3):
            noise_HWC = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (64, 64), interpolation=cv2.INTER_CUBIC)
            image = {"canny": cv2.Canny(noise_HWC, 50, 100), "depth": noise_HWC[..., 0]}.get(folder, noise_HWC)
            assert cv2.imwrite(str(data / folder / f"{number}.png"), image)
            data.joinpath("images", f"{number}.txt").write_text("a red sphere")
    run = train_controlnet(
        ControlNetConfig.model_validate(
            {
                "base": str(base),
                "hint_channels": [4, 4, 8, 8],
                "caption_dropout": 0.0,
                "condition_dropout": 0.5,
                "data": {"folder": data, "condition": KINDS, "width": 64, "height": 64},
                "monitor": {"every": 2, "samples": 2, "fidelity_every": 2, "steps": 1},
                "train": {"out": home / "run", "steps": 2, "batch_size": 2, "device": "cpu", "ema_decay": 0.0},
            }
        )
    )
    net = speaking(run.task.modules()["controlnet"]).eval()
    if hasattr(net, "controlnet_cond_embedding"):  # narrow, and of random weights: what it makes of a map is too faint to see
        with torch.no_grad():
            net.controlnet_cond_embedding.conv_out.weight.mul_(30.0)
    write_folder(home / "net", net)
    return base, home, run.task


def unit(home: Path, kind: str, **changes: Any) -> ControlUnit:
    values = {"kind": kind, "image": home / "data" / kind / "1.png", "ready": True, "model": str(home / "net")}
    return ControlUnit.model_validate(values | changes)


def test_the_config_says_what_it_reads(trained: tuple[Path, Path, Any]) -> None:
    _, home, _ = trained
    for folder in (home / "net", home / "run" / "weights"):
        config = json.loads((folder / "config.json").read_text())
        assert (config["limn_kinds"], config["limn_channels"]) == (list(KINDS), [3, 3])
    assert decode(next((home / "run" / "grids").glob("*.png"))).any()  # the monitor drew it while it was trained


def test_the_single_file_says_what_it_reads_too(trained: tuple[Path, Path, Any]) -> None:
    base, home, task = trained
    files = list((home / "run" / "weights").glob("controlnet-*.safetensors"))
    assert len(files) == has_single_file(task.net) >= (task.base.name != "flux")
    for file in files:
        Engine(PLACE).control(Engine(PLACE).base(base), file)
        config = open_checkpoint(file).config("")
        assert (config["limn_kinds"], config["limn_channels"]) == (list(KINDS), [3, 3])


def test_rendering_feeds_what_training_fed(trained: tuple[Path, Path, Any]) -> None:
    folder, home, task = trained
    base = Engine(PLACE).base(folder)
    net = Engine(PLACE).control(base, home / "net")
    maps = task.loader.maps(task.pairs[1])
    units = [unit(home, kind) for kind in reversed(KINDS)]  # in any order
    given = [Given(one, net, Hint(map_HWC, one.kind), one.kind) for one, map_HWC in zip(units, reversed(maps), strict=True)]
    (stage,) = stages_of(RenderRequest(width=64, height=64, steps=1), base)
    (control,) = with_controls(stage, base, given).controls
    batch, texts = task.batch([1]), task.texts
    assert isinstance(texts, Texts)
    text = texts.dropped(batch, 0.0, Draws(0, [0]))
    x, t = Draws(1, [0]).normal(base.latent_shape(64, 64)), torch.tensor([500.0])
    with torch.inference_mode():
        found = control.residuals(x, t[0], text)
        wanted = task.steering.residuals(task.net.eval(), x, t, text, batch["condition"])
    assert found.keys() == wanted.keys()
    for place, tensors in wanted.items():
        for one, other in zip(found[place], tensors, strict=True):
            # latents of maps are cached from a batch of another size: some ulps of values near 1
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_both_maps_are_heard_and_both_are_needed(trained: tuple[Path, Path, Any]) -> None:
    folder, home, _ = trained
    renderer = Renderer(Engine(PLACE), str(folder))

    def request(*units: ControlUnit) -> RenderRequest:
        return RenderRequest(prompt="a red sphere", model=str(folder), width=64, height=64, steps=1, guidance_scale=1.0, controls=units)

    canny, depth = (unit(home, kind) for kind in KINDS)
    other = unit(home, "depth", image=home / "data" / "depth" / "2.png")
    plain, both, swapped, changed = (
        np.asarray(renderer.render(asked)[0].image)
        for asked in (request(), request(canny, depth), request(depth, canny), request(canny, other))
    )
    assert not np.array_equal(both, plain)
    assert np.array_equal(both, swapped)
    assert not np.array_equal(both, changed)
    drawn = home / "data" / "canny" / "1.png"
    wrong: list[tuple[RenderRequest, type[LimnError], str]] = [
        (request(canny), Mismatch, r"reads canny and depth together, but is given canny: give one control of each of its kinds"),
        (request(canny, canny, depth), Mismatch, "but is given canny and canny and depth"),
        (request(canny, unit(home, "depth", weight=0.5)), Mismatch, r"so weight acts on both: give it alike to controls 0, 1"),
        (request(canny, unit(home, "scribble", image=drawn)), BadRequest, "says that it is for canny and depth"),
    ]
    for asked, error, message in wrong:
        with pytest.raises(error, match=message):
            renderer.render(asked)
        assert [finding.level for finding in examine(asked, renderer.engine) if finding.error] == ["error"]
