"""Single files draw what the folders they were made from draw, bit by bit; families, widths and predictions are read from tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BadModel
from core.request import ControlUnit, RenderRequest
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import families, family_of
from pipelines.layouts.prediction import measured
from pipelines.layouts.tokenizer import clip_tokenizer
from pipelines.place import Place
from pipelines.singlefile import SingleFile
from renderer import Renderer
from tests import original, tinymodels, tinymodels_flux, tinymodels_sd3, tinymodels_sdxl

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers' own use of it
CPU = Place(torch.device("cpu"), torch.float32)
SIZE = {"modelspec.resolution": "64x64"}
SD = {"unet": original.unet, "vae": original.vae, "text_encoder": original.clip}


def sdxl_parts(refiner: bool = False) -> dict[str, Callable[[Path], original.State]]:
    second = "conditioner.embedders.0.model." if refiner else "conditioner.embedders.1.model."
    parts = {"unet": original.unet, "vae": original.vae, "text_encoder_2": lambda folder: original.open_clip(folder, second)}
    return parts if refiner else parts | {"text_encoder": lambda folder: original.clip(folder, "conditioner.embedders.0.transformer.")}


def clips(*names: str) -> dict[str, Callable[[Path], original.State]]:
    return {
        part: lambda folder, name=name: original.clip(folder, f"text_encoders.{name}.transformer.")
        for part, name in zip(("text_encoder", "text_encoder_2"), names, strict=False)
    }


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tinymodels.build_base(tmp_path_factory.mktemp("one") / "sd")
    original.give_clip(folder, "text_encoder")
    original.write(folder.with_suffix(".safetensors"), folder, parts=SD, metadata=SIZE)
    return folder


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tinymodels_sdxl.build_base(tmp_path_factory.mktemp("one") / "sdxl")
    original.give_clip(folder, "text_encoder")
    original.give_clip(folder, "text_encoder_2", pad="!", hidden_act="gelu")
    original.write(folder.with_suffix(".safetensors"), folder, parts=sdxl_parts(), metadata=SIZE)
    return folder


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tinymodels_sd3.build_base(tmp_path_factory.mktemp("one") / "sd3", version="3.5", t5=False)
    original.give_clip(folder, "text_encoder")
    original.give_clip(folder, "text_encoder_2", pad="!", hidden_act="gelu")
    parts = {"transformer": original.sd3, "vae": original.vae, **clips("clip_l", "clip_g")}
    original.write(folder.with_suffix(".safetensors"), folder, parts=parts, metadata=SIZE)
    return folder


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tinymodels_flux.build_base(tmp_path_factory.mktemp("one") / "flux")
    original.give_clip(folder, "text_encoder")
    parts = {"transformer": original.flux, "vae": lambda part: original.vae(part, "vae."), **clips("clip_l"), "text_encoder_2": original.t5}
    file = original.write(
        folder.parent / "all" / "in-one.safetensors" if (folder.parent / "all").mkdir() is None else folder, folder, parts=parts
    )
    (file.with_suffix("")).mkdir()
    (file.with_suffix("") / "tokenizer_2").symlink_to(folder / "tokenizer_2")  # T5's tokenizer does not ship with Limn
    return folder


def draw(model: Path, **fields: Any) -> list[np.ndarray]:
    options: dict[str, Any] = {
        "prompt": "a red cube, snow",
        "width": 64,
        "height": 64,
        "steps": 2,
        "seed": 3,
        "guidance_scale": 3.0,
    } | fields
    request = RenderRequest(model=str(model), sampler="euler", schedule="uniform", **options)
    return [np.asarray(picture.image) for picture in Renderer.open(str(model)).render(request)]


def same(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    assert first[0].std() > 1
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_clips_tokenizer_ships() -> None:
    from transformers import CLIPTokenizer

    tokenizer = clip_tokenizer(CLIPTokenizer, "!")
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer("cat", padding="max_length").input_ids == [49406, 2368, 49407] + [0] * 74


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_a_file_draws_what_its_folder_draws(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    file = folder.with_suffix(".safetensors")
    alone = file.parent / "alone" / "anything.safetensors"  # nothing of the same name beside it
    alone.parent.mkdir()
    alone.hardlink_to(file)
    assert same(draw(folder), draw(alone))


def test_flux_in_one_file(flux: Path) -> None:
    assert same(draw(flux, guidance_scale=3.5), draw(flux.parent / "all" / "in-one.safetensors", guidance_scale=3.5))


def test_flux_transformer_alone(flux: Path) -> None:
    file = flux.parent / "flux.safetensors"  # whose missing parts are found in the folder of its name
    original.write(file, flux, parts={"transformer": lambda folder: original.flux(folder, "")})
    assert same(draw(flux), draw(file))


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux"])
def test_a_missing_part_is_named_with_the_remedy(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(name)
    file = tmp_path / "bare.safetensors"
    convert = {"sd": original.unet, "sdxl": original.unet, "sd3": original.sd3, "flux": original.flux}[name]
    original.write(file, folder, parts={"unet" if name.startswith("sd") and name != "sd3" else "transformer": convert})
    with pytest.raises(
        BadModel, match=r"has no 'vae': a .* model needs .*; put the vae as '.*bare/vae' beside the file, or give a diffusers folder"
    ):
        Renderer.open(str(file))


def test_t5s_tokenizer_is_asked_for(flux: Path, tmp_path: Path) -> None:
    file = tmp_path / "flux.safetensors"
    file.hardlink_to(flux.parent / "all" / "in-one.safetensors")
    with pytest.raises(BadModel, match=r"has no 'tokenizer_2': .*put T5's tokenizer \(google/t5-v1_1-xxl\) as .*tokenizer_2"):
        Renderer.open(str(file))


def test_sd3_reads_t5_where_its_tokenizer_lies_beside(tmp_path: Path) -> None:
    folder = tinymodels_sd3.build_base(tmp_path / "sd3")
    parts = {"transformer": original.sd3, "vae": original.vae, **clips("clip_l", "clip_g"), "text_encoder_3": original.t5}
    file = original.write(tmp_path / "file.safetensors", folder, parts=parts, metadata=SIZE)
    without = open_checkpoint(file)
    assert "text_encoder_3" not in without.classes
    assert without.has("text_encoder_3")
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "tokenizer_3").symlink_to(folder / "tokenizer_3")
    whole = open_checkpoint(file)
    assert whole.classes["text_encoder_3"] == "T5EncoderModel"
    from transformers import T5EncoderModel

    ours, theirs = (one.network(T5EncoderModel, "text_encoder_3", CPU).state_dict() for one in (whole, open_checkpoint(folder)))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("marker", ["metadata", "v_pred", "yaml"])
def test_velocity_is_noticed(sd: Path, tmp_path: Path, marker: str) -> None:
    file = tmp_path / "model.safetensors"
    said = SIZE | ({"modelspec.prediction_type": "v"} if marker == "metadata" else {})
    more = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)} if marker == "v_pred" else {}
    original.write(file, sd, parts={"unet": original.unet}, metadata=said, **more)
    if marker == "yaml":
        file.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: v\n")
    config = SingleFile(file).config("scheduler")
    assert config["prediction_type"] == "v_prediction"
    assert config.get("rescale_betas_zero_snr", False) == (marker == "v_pred")


def test_what_nobody_says_is_measured() -> None:
    """toyland predicts velocity; read as noise (ε = αv + σx), the same network predicts noise."""
    toyland = family_of(open_checkpoint(Path(tinymodels.__file__).parents[1] / "models/toyland/base"))
    family: Any = toyland.load(open_checkpoint(Path(tinymodels.__file__).parents[1] / "models/toyland/base"), CPU)
    assert measured(family.unet) == "v_prediction"

    class Noise(torch.nn.Module):
        def __init__(self, unet: Any) -> None:
            super().__init__()
            self.unet, self.config = unet, unet.config

        def forward(self, x: Any, t: int, **options: Any) -> Any:
            alpha = float(family.path.alphas_T[900])
            return (alpha * self.unet(x, 900, **options)[0] + (1 - alpha**2) ** 0.5 * x,)

    assert measured(Noise(family.unet)) == "epsilon"


def test_sd2_reads_openclip_without_its_last_layer(tmp_path: Path) -> None:
    folder = tinymodels.build_base(tmp_path / "sd2", prediction_type="v_prediction")
    original.give_clip(folder, "text_encoder", pad="!", hidden_act="gelu")
    parts = {"unet": original.unet, "vae": original.vae, "text_encoder": original.open_clip}
    file = original.write(tmp_path / "other.safetensors", folder, parts=parts, metadata=SIZE | {"modelspec.prediction_type": "v"})
    assert same(draw(folder), draw(file))


def test_an_inpainting_file_has_nine_channels(sd: Path, tmp_path: Path) -> None:
    folder = tinymodels_sdxl.build_inpainting(tmp_path / "nine", sd)
    file = original.write(tmp_path / "inpaint.safetensors", folder, parts=SD, metadata=SIZE)
    assert same(draw(folder), draw(file))


def test_the_refiner_is_told_a_score(tmp_path: Path) -> None:
    folder = tinymodels_sdxl.build_base(tmp_path / "refiner", refiner=True)
    original.give_clip(folder, "text_encoder_2", pad="!", hidden_act="gelu")
    said = SIZE | {"limn.unet": json.dumps(json.loads((folder / "unet/config.json").read_text()))}
    file = original.write(tmp_path / "file.safetensors", folder, parts=sdxl_parts(refiner=True), metadata=said)
    assert same(draw(folder), draw(file))


@pytest.mark.parametrize("layout", ["control_model.", "", "diffusers"])
def test_a_controlnet_in_one_file(sd: Path, tmp_path: Path, layout: str) -> None:
    net = tinymodels.build_controlnet(tmp_path / "net", sd)
    convert = original.state if layout == "diffusers" else lambda folder: original.unet(folder, layout)
    file = original.write(tmp_path / "file.safetensors", net, parts={"": convert})
    map_ = tinymodels.build_pictures(tmp_path) / "depth.png"
    drawn = [draw(sd, controls=(ControlUnit(kind="depth", image=map_, ready=True, model=str(model)),)) for model in (net, file)]
    assert same(*drawn)
    assert not same(drawn[0], draw(sd))


def test_union_adapter_and_transformer_controls(sdxl: Path, sd: Path, tmp_path: Path) -> None:
    union = tinymodels_sdxl.build_union(tmp_path / "union", sdxl)
    adapter = tinymodels_sdxl.build_adapter(tmp_path / "adapter", (32, 64))
    flat = tmp_path / "flat"  # two residual blocks a block, as published
    import diffusers

    torch.manual_seed(0)
    diffusers.T2IAdapter(channels=[32, 64], num_res_blocks=2).save_pretrained(flat)
    nets = {
        union: original.state,
        adapter: original.state,
        flat: original.adapter,
        tinymodels_sd3.build_controlnet(tmp_path / "sd3"): original.state,
        tinymodels_flux.build_controlnet(tmp_path / "flux", num_mode=5): original.state,
    }
    for folder, convert in nets.items():
        file = original.write(tmp_path / f"{folder.name}-one.safetensors", folder, parts={"": convert})
        kind = open_checkpoint(folder).classes[""]
        assert open_checkpoint(file).classes[""] == kind
        networks = [open_checkpoint(path).network(getattr(diffusers, kind), "", CPU) for path in (folder, file)]
        states = [network.state_dict() for network in networks]
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_flux_is_read_as_diffusers_reads_it() -> None:
    """At the published width, which is written into diffusers' converter; one block of each kind, matrices without numbers."""
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    from pipelines.layouts.transformers import from_flux

    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    state = {name: tensor if tensor.ndim > 1 else torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(original, "state", lambda folder: state)
        theirs = original.flux(Path(), "")
    mine, wanted = from_flux(dict(theirs)), convert_flux_transformer_checkpoint_to_diffusers(dict(theirs))
    assert mine.keys() == wanted.keys() == state.keys()
    for name, tensor in wanted.items():
        assert mine[name].shape == tensor.shape
        assert tensor.is_meta or torch.equal(mine[name], tensor)
        assert tensor.is_meta or torch.equal(mine[name], state[name])


def test_files_that_are_no_models_say_what_they_are(sd: Path, tmp_path: Path) -> None:
    def refused(tensors: dict[str, torch.Tensor], match: str) -> None:
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(BadModel, match=match):
            open_checkpoint(tmp_path / "x.safetensors")

    refused({"lora_unet_mid.lora_down.weight": torch.zeros(1)}, "is a LoRA: name it in the prompt")
    refused(load_file(sd / "vae/diffusion_pytorch_model.safetensors"), "is an autoencoder alone: give a whole model, and this with --vae")
    refused(load_file(sd / "unet/diffusion_pytorch_model.safetensors"), "is one network under diffusers' names")
    refused({"emb_params": torch.zeros(1)}, "is a textual inversion")
    refused({"something": torch.zeros(1)}, "is of an unknown layout .it holds 'something'.: known are")


def test_every_family_is_recognised_from_tensors(sd: Path, sdxl: Path, sd3: Path, flux: Path) -> None:
    files = {"sd": sd, "sdxl": sdxl, "sd3": sd3}
    found = {name: family_of(open_checkpoint(folder.with_suffix(".safetensors"))).name for name, folder in files.items()}
    found["flux"] = family_of(open_checkpoint(flux.parent / "all" / "in-one.safetensors")).name
    assert all(name == family for name, family in found.items())
    assert set(found) <= set(families())
