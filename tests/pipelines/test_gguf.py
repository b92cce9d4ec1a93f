"""GGUF files, written by the format's own package: read from tensors alone, drawn with in their few bits, refused in one sentence."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import BadModel
from core.request import RenderRequest
from pipelines.catalogue import installed
from pipelines.checkpoint import open_checkpoint
from pipelines.engine import family_of, resolve
from pipelines.place import Place
from renderer import Renderer
from tests import original, tinymodels_flux, tinymodels_sd3

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")
CPU = Place(torch.device("cpu"), torch.float32)
Kind = gguf.GGMLQuantizationType


def write(file: Path, state: original.State, kind: Kind, config: dict[str, Any]) -> Path:
    """A GGUF file of these tensors: matrices packed, the rest in 32 bits, as published files are."""
    writer = gguf.GGUFWriter(file, "flux")
    writer.add_string("limn.transformer", json.dumps(config))
    for name, tensor in state.items():
        array = tensor.float().contiguous().numpy()
        packed = array.ndim == 2 and array.shape[1] % 32 == 0
        data = gguf.quants.quantize(array, kind) if packed else array
        writer.add_tensor(name, data, raw_dtype=kind if packed else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tinymodels_flux.build_base(tmp_path_factory.mktemp("gguf") / "flux")


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


def packed(folder: Path, where: Path, kind: Kind) -> Path:
    """The model's transformer as GGUF; what else it needs is found beside it."""
    where.mkdir()
    (where / "model").symlink_to(folder)
    return write(where / "model.gguf", original.flux(folder / "transformer", ""), kind, config_of(folder / "transformer"))


def drawn(model: Path, dtype: str | None = None) -> np.ndarray:
    request = RenderRequest(prompt="a red cube", width=64, height=64, steps=2, seed=3, guidance_scale=3.5)
    return np.asarray(Renderer.open(str(model), "cpu", dtype).render(request)[0].image).astype(int)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.BF16])
def test_a_packed_file_draws_what_its_numbers_draw(flux: Path, tmp_path: Path, kind: Kind) -> None:
    """Against a folder whose matrices are what the format's own package unpacks: equal to rounding."""
    file = packed(flux, tmp_path / "packed", kind)
    plain = tmp_path / "plain"
    plain.symlink_to(flux)
    state = original.flux(flux / "transformer", "")
    for name, tensor in state.items():
        if tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            array = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind)
            state[name] = torch.from_numpy(array.astype(np.float32))
    said = {"limn.transformer": json.dumps(config_of(flux / "transformer"))}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "plain.safetensors", said)
    assert np.abs(drawn(file) - drawn(tmp_path / "plain.safetensors")).max() <= 1  # a level of 255 may tip over
    assert kind == Kind.BF16 or not np.array_equal(drawn(file), drawn(flux))


def test_matrices_stay_packed_in_memory(flux: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(packed(flux, tmp_path / "packed", Kind.Q8_0))
    family: Any = family_of(checkpoint).load(checkpoint, CPU)
    layer = family.transformer.transformer_blocks[0].attn.to_k
    assert (type(layer).__name__, layer.weight.dtype) == ("GGUFLinear", torch.uint8)
    assert tuple(layer.weight.quant_shape) == (layer.out_features, layer.in_features)
    plain = open_checkpoint(flux)
    there = sum(one.numel() * one.element_size() for one in family.transformer.parameters())
    usual = sum(one.numel() * one.element_size() for one in family_of(plain).load(plain, CPU).networks()["transformer"].parameters())
    assert there < 0.4 * usual  # 8.5 bits of 32, and what is not packed
    assert all(not one.requires_grad for one in family.transformer.parameters())


def test_half_precision_computes_with_packed_matrices(flux: Path, tmp_path: Path) -> None:
    file = packed(flux, tmp_path / "packed", Kind.Q8_0)
    assert np.abs(drawn(file, "bfloat16") - drawn(file)).mean() < 8  # of 255


def test_stable_diffusion_3(tmp_path: Path) -> None:
    folder = tinymodels_sd3.build_base(tmp_path / "sd3", version="3.5", t5=False)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "sd3").symlink_to(folder)
    file = write(tmp_path / "one" / "sd3.gguf", original.sd3(folder / "transformer", ""), Kind.Q8_0, config_of(folder / "transformer"))
    assert np.abs(drawn(file) - drawn(folder)).mean() < 8  # 8-bit blocks of 32: under 1 % of a weight


def test_shapes_that_were_flattened(tmp_path: Path) -> None:
    """Convolutions are packed as matrices of another shape; the file says which they had."""
    from pipelines.layouts.header import Header

    tensor = torch.randn(8, 4, 4, 4)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "sdxl")
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [8, 4, 4, 4])
    writer.add_tensor("conv.weight", gguf.quants.quantize(tensor.reshape(16, 32).numpy(), Kind.Q8_0), raw_dtype=Kind.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = Header.read(tmp_path / "x.gguf")
    assert header.shapes == {"conv.weight": (8, 4, 4, 4)}
    read = header.tensors({"new": "conv.weight"})["new"]
    torch.testing.assert_close(read.float(), tensor, rtol=0, atol=float(tensor.abs().max()) / 127)


def test_a_loras_layers_are_found_in_packed_networks(flux: Path, tmp_path: Path) -> None:
    file = packed(flux, tmp_path / "packed", Kind.Q8_0)
    name = "transformer.transformer_blocks.0.attn.to_q"
    shape = load_file(flux / "transformer/diffusion_pytorch_model.safetensors")["transformer_blocks.0.attn.to_q.weight"].shape
    lora = {f"{name}.lora_A.weight": torch.randn(4, shape[1]), f"{name}.lora_B.weight": torch.randn(shape[0], 4)}
    save_file(lora, tmp_path / "bold.safetensors")
    renderer = Renderer.open(str(file), "cpu")
    plain = RenderRequest(prompt="a red cube", width=64, height=64, steps=2, seed=3)
    with_lora = plain.model_copy(update={"prompt": f"a red cube <lora:{tmp_path / 'bold.safetensors'}:1>"})
    images = [np.asarray(renderer.render(request)[0].image) for request in (plain, with_lora, plain)]
    assert np.array_equal(images[0], images[2])
    assert not np.array_equal(images[0], images[1])


def test_it_is_listed_and_found_by_name(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(flux, tmp_path / "mine", Kind.Q8_0)
    monkeypatch.setenv("LIMN_MODELS", str(tmp_path / "mine"))
    assert resolve("model") == tmp_path / "mine" / "model"  # the folder of its name comes first
    assert resolve("model.gguf") == file
    found = [one for one in installed() if one.path == file]
    assert [(one.kind, one.family) for one in found] == [("model", "flux")]


def test_what_cannot_be_read_says_so(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(flux, tmp_path / "packed", Kind.Q8_0)
    whole = file.read_bytes()
    for length in (6, 40, 3000, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(BadModel, match=r"cut\.gguf' are damaged or cut short"):
            open_checkpoint(tmp_path / "cut.gguf")
    write(tmp_path / "other.gguf", {"blk.0.attn_q.weight": torch.zeros(4, 32)}, Kind.Q8_0, {})
    with pytest.raises(BadModel, match=r"is of an unknown layout .it holds 'blk.0.attn_q.weight'."):
        open_checkpoint(tmp_path / "other.gguf")
    monkeypatch.setattr("pipelines.layouts.gguf.importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadModel, match="is a GGUF file, and the package that reads it is not installed: run 'pip install gguf'"):
        open_checkpoint(file)
