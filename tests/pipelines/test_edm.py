"""Models of the EDM kind draw what diffusers draws with its EDM schedulers, from folders and from marked single files."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.errors import BadModel, Mismatch
from core.request import RenderRequest
from pipelines import samplers
from pipelines.checkpoint import Folder, open_checkpoint
from pipelines.denoise import Plan, denoise, seeded_noise
from pipelines.edm import Edm
from pipelines.families.sdxl import StableDiffusionXL
from pipelines.parameterisation import Path as DiffusionPath
from pipelines.schedules import make_times
from pipelines.singlefile import SingleFile
from renderer import Renderer
from tests import original, tinymodels
from tests.pipelines.unet_parity import GUIDANCE, HEIGHT, NEGATIVE, PLACE, PROMPT, SEED, STEPS, WIDTH, told

STATISTICS = {"latents_mean": [0.5, -1.0, 1.0, 0.0], "latents_std": [2.0, 0.5, 1.0, 4.0], "scaling_factor": 0.5}
SIZE = {"modelspec.resolution": "64x64"}
KINDS: dict[str, dict[str, Any]] = {
    "playground": {"prediction_type": "epsilon", "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0},
    "cosxl": {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_min": 0.002, "sigma_max": 120.0},
}


@pytest.fixture(scope="module")
def models(sdxl_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """SDXL folders whose scheduler, and for Playground autoencoder, say EDM."""
    folder, found = tmp_path_factory.mktemp("edm"), {}
    for name, scheduler in KINDS.items():
        found[name] = shutil.copytree(sdxl_base, folder / name)
        config = {"_class_name": "EDMEulerScheduler", **scheduler}
        (found[name] / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
        if name == "playground":
            vae = found[name] / "vae" / "config.json"
            vae.write_text(json.dumps(json.loads(vae.read_text()) | STATISTICS))
    return found


def theirs(folder: Path, scheduler: str, noise_BCHW: torch.Tensor) -> tuple[torch.Tensor, Any]:
    import diffusers

    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(json.loads((folder / "scheduler/scheduler_config.json").read_text()))
    pipe.set_progress_bar_config(disable=True)
    highest = float(pipe.scheduler.config.sigma_max)
    call = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "num_inference_steps": STEPS}
    # diffusers begins at √(σ² + 1) times the noise, which is σ times it but for the picture's own share.
    latents = noise_BCHW * highest / math.sqrt(highest**2 + 1.0)
    return pipe(**call, latents=latents, height=HEIGHT, width=WIDTH, output_type="latent").images, pipe


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("sampler", "scheduler"), [("euler", "EDMEulerScheduler"), ("dpmpp_2m", "EDMDPMSolverMultistepScheduler")])
def test_latents_are_those_of_diffusers(models: dict[str, Path], name: str, sampler: str, scheduler: str) -> None:
    """Within 1e-3 of their own size: the table of levels is read between its entries, 1e-5 of a level off, eighty times the picture."""
    family = StableDiffusionXL.load(Folder(models[name]), PLACE)
    noise = seeded_noise([SEED], family.latent_shape(WIDTH, HEIGHT), PLACE.device)
    expected, pipe = theirs(models[name], scheduler, noise())
    noise = seeded_noise([SEED], family.latent_shape(WIDTH, HEIGHT), PLACE.device)  # from its beginning
    spec = samplers.get(sampler)
    plan = Plan(
        sampler=spec,
        times=make_times(family.path, "karras", STEPS, spec.grid),
        positive=told(family, PROMPT),
        negative=told(family, NEGATIVE, negative=True),
        guidance_scale=GUIDANCE,
    )
    got = denoise(family, plan, noise, lambda i, denoised: None)
    data = KINDS[name]["sigma_data"]
    assert float((got * data - expected).abs().max()) < 1e-3 * float(expected.abs().max())
    with torch.no_grad():
        config = json.loads((models[name] / "vae" / "config.json").read_text())  # the family has changed its own
        mean, std = (
            torch.tensor(config.get(key) or [fill] * 4).reshape(1, 4, 1, 1) for key, fill in (("latents_mean", 0.0), ("latents_std", 1.0))
        )
        wanted = pipe.vae.decode(expected * std / config["scaling_factor"] + mean).sample
        torch.testing.assert_close(family.decode(expected / data), wanted, rtol=1e-4, atol=1e-4)


def test_the_table_and_what_is_told() -> None:
    edm = Edm.of({"_class_name": "EDMEulerScheduler"})
    assert edm == Edm(0.002, 80.0, 0.5, -1.0)
    path = DiffusionPath.from_scheduler_config({"_class_name": "EDMEulerScheduler"})
    levels = path.levels()
    assert float(levels[0]) == pytest.approx(0.004)
    assert float(levels[-1]) == pytest.approx(160.0)
    for index in (0, 400, 999):
        assert float(edm.told(torch.tensor(float(index)))) == pytest.approx(0.25 * math.log(0.5 * float(levels[index])), rel=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_marked_single_files(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    marks = {
        "playground": {"edm_mean": torch.tensor(STATISTICS["latents_mean"]), "edm_std": torch.tensor(STATISTICS["latents_std"])},
        "cosxl": {"edm_vpred.sigma_max": torch.tensor(120.0), "edm_vpred.sigma_min": torch.tensor(0.002)},
    }
    file = original.write(
        tmp_path / "model.safetensors", models[name], parts={"unet": original.unet, "vae": original.vae}, metadata=SIZE, **marks[name]
    )
    found = SingleFile(file)
    said = found.config("scheduler")
    assert {key: pytest.approx(value) for key, value in KINDS[name].items()} == {key: said[key] for key in KINDS[name]}
    vae = found.config("vae")
    assert (vae.get("latents_mean"), vae["scaling_factor"]) == (
        (STATISTICS["latents_mean"], 0.5) if name == "playground" else (None, 0.13025)
    )


def test_a_picture_and_what_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    renderer = Renderer.open(str(models["playground"]), "cpu")
    request = RenderRequest(prompt="a cube", width=64, height=64, steps=2, sampler="dpmpp_2m", schedule="karras")
    assert np.asarray(renderer.render(request)[0].image).std() > 0
    net = tinymodels.build_controlnet(tmp_path / "net", models["playground"])
    with pytest.raises(Mismatch, match=r"is told timesteps, the base model .* is of the EDM kind and told noise levels: use a T2I-Adapter"):
        renderer.base(str(models["playground"])).check_control(open_checkpoint(net))
    for wrong, says in (({"sigma_min": 90.0}, "expected 0 < min < max"), ({"prediction_type": "sample"}, "'sample' of an EDM model")):
        with pytest.raises(BadModel, match=says):
            Edm.of({"_class_name": "EDMEulerScheduler", **wrong})


def test_nothing_is_trained_on_them(models: dict[str, Path], sdxl_base: Path) -> None:
    from training.run import _check_base

    _check_base(sdxl_base)
    with pytest.raises(BadModel, match="is of the EDM kind, told noise levels: train on a base of noise, velocity or flow prediction"):
        _check_base(models["cosxl"])
