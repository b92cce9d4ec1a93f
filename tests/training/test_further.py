"""Finished ControlNets trained further: fed as rendering feeds them, and refused where they cannot be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from controls.prepare import settled
from core.errors import LimnError, Mismatch
from core.images import decode, encode_png
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import Engine
from pipelines.family import Hint
from tests import tinymodels, tinymodels_flux, tinymodels_sd3
from tests.training.test_families import PLACE, config
from training.controlnet import ControlNetTask
from training.data import Loader, read_pairs
from training.export import write_folder
from training.randomness import Draws
from training.run import ControlNetConfig, build_task, load_controlnet, train_controlnet
from training.steering import steering

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")  # of diffusers' own class

Build = Callable[..., Path]

NETS: dict[str, tuple[Build, Build]] = {
    "sd": (tinymodels.build_base, lambda folder: tinymodels.build_controlnet(folder, folder.parent / "base")),
    "sd3": (tinymodels_sd3.build_base, lambda folder: tinymodels_sd3.build_controlnet(folder, force_zeros_for_pooled_projection=False)),
    # as InstantX's: the entry is true where a config does not say
    "sd3 of InstantX": (tinymodels_sd3.build_base, tinymodels_sd3.build_controlnet),
    "flux": (tinymodels_flux.build_base, tinymodels_flux.build_controlnet),
}


def task_of(given: ControlNetConfig, **changes: Any) -> ControlNetTask:
    values = given.model_dump()
    values["data"] |= changes.pop("data", {})
    return build_task(ControlNetConfig.model_validate(values | changes), PartialState(cpu=True))


def same_when_rendered(task: ControlNetTask, base: Path, net: Path, kind: str = "hint") -> None:
    """The residuals of the task's network as training feeds it are those of the folder as rendering does."""
    family = Engine(PLACE).base(base)
    batch = task.batch([1])
    text, t = task.texts.dropped(batch, 0.0, Draws(0, [0])), torch.tensor([500.0])
    x = Draws(1, [0]).normal(family.latent_shape(64, 64))
    loaded = family.load_control(open_checkpoint(net))
    with torch.inference_mode():
        wanted = family.prepare(loaded, Hint(task.loader.condition(task.pairs[1]), kind)).residuals(x, t[0], text)
        found = task.steering.residuals(task.net.eval(), x, t, text, batch["condition"])
    assert found.keys() == wanted.keys()
    for place, tensors in wanted.items():
        for one, other in zip(found[place], tensors, strict=True):
            assert other.any()
            # latents of maps are cached from a batch of another size: some ulps of values near 1
            torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", NETS)
def test_a_finished_net_is_fed_what_it_was_fed_before(name: str, tmp_path: Path) -> None:
    build_base, build_net = NETS[name]
    base = build_base(tmp_path / "base")
    net = build_net(tmp_path / "net")
    given = config(base, tmp_path)
    task = task_of(given, init=net)
    same_when_rendered(task, base, net)
    new = task_of(given)  # shares the cache, and must not take the other's latents from it
    if task.steering.reads_latents:
        assert torch.equal(new.batch([1])["condition"], task.batch([1])["condition"]) == (name != "sd3 of InstantX")
    write_folder(tmp_path / "out", task.net)
    same_when_rendered(task, base, tmp_path / "out")


def test_an_inpainting_map_has_its_hole_in_training_too(tmp_path: Path) -> None:
    base = tinymodels.build_base(tmp_path / "base")
    net = tinymodels.build_controlnet(tmp_path / "net", base, strength=2.0)
    given = config(base, tmp_path)
    for path in (tmp_path / "data" / "images").glob("*.png"):
        image_HWC = decode(path).copy()
        image_HWC[10:40, 10:40] = 255
        path.write_bytes(encode_png(image_HWC))
    task = task_of(given, init=net, data={"condition": "inpaint", "extract": True}, condition_dropout=1.0)
    condition = task.batch([1])["condition"]
    hole_HW = ~task.loader.condition(task.pairs[1]).any(axis=2)
    assert 0 < hole_HW.mean() < 1
    assert np.array_equal((condition[0] == -1).all(0).numpy(), hole_HW)
    assert not (condition[0] < 0)[:, ~torch.from_numpy(hole_HW)].any()
    same_when_rendered(task, base, net, "inpaint")
    assert (task._black(condition) == -1).all()  # a black map is all hole


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda folder: tinymodels_flux.build_controlnet(folder, num_mode=10), "is a union of 10 modes, which cannot be trained further"),
        (lambda folder: tinymodels_flux.build_controlnet(folder, conditioning_embedding_channels=16), r"reads pixels .* \(XLabs\)"),
        (tinymodels_flux.build_hole_controlnet, r"reads a hole beside the picture \(alimama\)"),
        (
            lambda folder: tinymodels_sd3.build_controlnet(
                folder, version="3.5", use_pos_embed=False, pos_embed_type=None, joint_attention_dim=None
            ),
            r"reads the picture through the base's own layers \(Stable Diffusion 3.5 Large\)",
        ),
    ],
    ids=["union", "xlabs", "hole", "3.5 large"],
)
def test_nets_that_are_only_drawn_with_are_refused(build: Build, says: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base = (tinymodels_sd3 if "large" in request.node.name else tinymodels_flux).build_base(tmp_path / "base")
    with pytest.raises(Mismatch, match=says):
        task_of(config(base, tmp_path), init=build(tmp_path / "net"))


def test_bases_with_channels_for_a_map_or_a_hole_are_refused(tmp_path: Path) -> None:
    bases = [tinymodels_flux.build_base(tmp_path / name, pipeline=name) for name in ("FluxFillPipeline", "FluxControlPipeline")]
    bases.append(tinymodels_sd3.build_base(tmp_path / "sd3", version="3-inpaint"))
    for number, base in enumerate(bases):
        with pytest.raises(Mismatch, match="has channels for a map or a hole: train on the plain model"):
            task_of(config(base, tmp_path / f"run-{number}"))


def test_other_blocks_and_widths_than_are_asked_for_are_refused(tmp_path: Path) -> None:
    base = tinymodels.build_base(tmp_path / "base")
    given = config(base, tmp_path)
    settings: dict[str, dict[str, Any]] = {"lite": {"variant": "lite"}, "blocks": {"blocks": [1]}}
    for name, changes in settings.items():
        task = task_of(given, **changes)
        write_folder(tmp_path / name, task.net)
    for name, other in (("lite", "blocks"), ("blocks", "lite")):
        assert task_of(given, init=tmp_path / name, **settings[name]).net is not None
        with pytest.raises(Mismatch, match=r"has block_out_channels \[.*\], these settings make \["):
            task_of(given, init=tmp_path / name, **settings[other])
    base = tinymodels_sd3.build_base(tmp_path / "base-3")
    net = tinymodels_sd3.build_controlnet(tmp_path / "net-3", num_layers=1)
    family = Engine(PLACE).base(base)
    assert len(load_controlnet(family, net, steering(family)).transformer_blocks) == 1  # what is not said comes from the net
    with pytest.raises(Mismatch, match="has num_layers 1, these settings make 2"):
        load_controlnet(family, net, steering(family, blocks=(2,)), (2,))


def test_a_single_file_goes_on_too_and_in_all_its_bits(tmp_path: Path) -> None:
    base = tinymodels.build_base(tmp_path / "base")
    run = train_controlnet(config(base, tmp_path))
    (file,) = (tmp_path / "run" / "weights").glob("controlnet-*.safetensors")
    task = task_of(config(base, tmp_path / "again"), init=file)
    for name, tensor in run.task.modules()["controlnet"].state_dict().items():
        assert torch.equal(task.net.state_dict()[name], tensor), name
    assert all(parameter.requires_grad for parameter in task.net.parameters())
    base = tinymodels_sd3.build_base(tmp_path / "base-3")
    net = tinymodels_sd3.build_controlnet(tmp_path / "net-3")
    task = task_of(config(base, tmp_path / "half", precision="bf16"), init=net, base_weights="bf16")
    stored = load_file(net / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(task.net.state_dict()[name], tensor) for name, tensor in stored.items())


def test_conditions_are_extracted_by_the_estimator_that_rendering_takes(tmp_path: Path) -> None:
    given = config(tinymodels.build_base(tmp_path / "base"), tmp_path)
    data = given.data.model_copy(update={"condition": "depth", "extract": True})
    pair = read_pairs(data)[0]
    for model in ("toyland", "owner/model"):
        loader = Loader(data, base=model)
        control = loader.control
        assert control is not None
        assert loader.params(pair) == settled(control, control.parse_params({}), model)
    assert Loader(data, base="toyland").params(pair).model_dump()["estimator"] == ""
    assert task_of(given).loader.base == given.base


def test_what_is_refused_is_said_in_one_line(tmp_path: Path) -> None:
    base = tinymodels.build_base(tmp_path / "base")
    for wrong in (base, tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        with pytest.raises(LimnError) as raised:
            task_of(config(base, tmp_path / "x" / wrong.name), init=wrong)
        assert "\n" not in str(raised.value)
        assert ("no model" in str(raised.value)) == (wrong != base)
