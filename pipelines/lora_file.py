"""LoRA files: found by name and read, in diffusers', PEFT's and kohya's forms; safetensors alone."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import BadModel, unknown_name

# A key is a layer's path and what the tensor is in the product that makes ΔW.
_ROLES = {
    r"lora_A(\.default)?\.weight|lora_down\.weight|lora\.down\.weight|lora_linear_layer\.down\.weight": "down",
    r"lora_B(\.default)?\.weight|lora_up\.weight|lora\.up\.weight|lora_linear_layer\.up\.weight": "up",
    r"lora_mid\.weight": "mid",
    r"alpha": "alpha",
    r"(hada_w[12]_[ab]|lokr_w[12](_[ab])?)": "",  # as they are called
}
_KEY = re.compile(r"(?P<layer>.+?)\.(?:" + "|".join(f"(?P<role{i}>{pattern})" for i, pattern in enumerate(_ROLES)) + ")")
_OLD_ATTENTION = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.")
_UNKNOWN_KINDS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "hada_t1": "a Tucker LoHa",
    "lokr_t2": "a Tucker LoKr",
    "diff": "a full difference",
    "diff_b": "a full difference",
}
# Where a token of FLUX.1 is read, by Black Forest Labs' name and by diffusers', and what it holds; a Control LoRA reads wider ones.
_READS_MAPS = re.compile(r"(^|[._])(img_in|x_embedder)\.lora_(A|down)\.weight$")
_FLUX_CHANNELS = 64
# Where the width of cross-attention's input tells the family.
_FAMILY_OF_WIDTH = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA as it is on disk: for each layer, by its flattened name, its tensors by their part in the product, and its α."""

    path: Path
    layers: dict[str, dict[str, Tensor]]
    alphas: dict[str, float]
    root_scaled: bool = False  # rank-stabilised: α/√rank in place of α/rank

    def made_for(self) -> str:
        """`is for FLUX ` where the names or the widths tell, else nothing."""
        names = " ".join(self.layers)
        family = None
        if "single_transformer_blocks" in names or "double_blocks" in names:
            family = "FLUX"
        elif "joint_blocks" in names or "transformer_transformer_blocks" in names:
            family = "SD3"
        else:
            widths = [roles["down"].shape[1] for name, roles in self.layers.items() if name.endswith("attn2_to_k") and "down" in roles]
            family = _FAMILY_OF_WIDTH.get(int(widths[0])) if widths else None
        return f"is for {family} " if family else ""


def find_lora(name: str, *folders: Path) -> Path:
    """The file a name means: a path, or the name of a file in one of the folders, with or without subfolders and suffix.

    Raises:
        BadRequest: there is none; the nearest is named.
        BadModel: the path is a pickle's.
    """
    direct = Path(name)
    if direct.suffix in (".safetensors", ".pt", ".ckpt", ".bin") and direct.is_file():
        return direct
    known: dict[str, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("*.safetensors")):
            known.setdefault(file.relative_to(folder).with_suffix("").as_posix(), file)
            known.setdefault(file.stem, file)
    wanted = name.removesuffix(".safetensors")
    if wanted not in known:
        raise unknown_name("LoRA", name, known or ["none: no LoRA folder holds a .safetensors file"])
    return known[wanted]


def read_lora(path: Path) -> LoraFile:
    """A LoRA's tensors.

    Raises:
        BadModel: the file is missing, damaged, a pickle, or of a kind that is not supported.
    """
    if path.suffix != ".safetensors":
        raise BadModel(
            f"LoRA {path.name!r} is no .safetensors file: pickles can run any program when read; get or convert it to safetensors"
        )
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise BadModel(f"LoRA {str(path)!r} cannot be read: {error}; download it again") from None
    if reads_maps({key: tuple(tensor.shape) for key, tensor in tensors.items()}):
        raise BadModel(
            f"LoRA {path.name!r} is a Control LoRA, which has FLUX.1 read a map: give it as the model of a control, as in "
            f"--control canny=edges.png,model={path}"
        )
    layers: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, tensor in tensors.items():
        layer, role = _parse_key(key, path)
        if role == "alpha":
            if tensor.numel() != 1:
                raise BadModel(f"LoRA {path.name!r} is damaged: {key!r} has {tensor.numel()} values, expected one; download it again")
            alphas[layer] = float(tensor)
        else:
            layers.setdefault(layer, {})[role] = tensor
    if not layers:
        raise BadModel(f"{path.name!r} is no LoRA: it holds {next(iter(tensors), 'nothing')!r}; expected pairs of up and down matrices")
    said = described(metadata)
    alphas |= {layer: alpha for layer in layers if layer not in alphas and (alpha := described_alpha(said, layer)) is not None}
    return LoraFile(path, layers, alphas, root_scaled(said))


def reads_maps(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors of a file are a Control LoRA's: FLUX.1's, with tokens wider than latents alone are."""
    return any(_READS_MAPS.search(key) and len(shape) == 2 and shape[1] > _FLUX_CHANNELS for key, shape in shapes.items())


def _parse_key(key: str, path: Path) -> tuple[str, str]:
    """(a layer's flattened name, the tensor's role)."""
    plain = _OLD_ATTENTION.sub(lambda match: f".to_{match[1]}{'.0' if match[1] == 'out' else ''}.lora.", key)
    match = _KEY.fullmatch(plain)
    if match is None:
        kind = next((kind for end, kind in _UNKNOWN_KINDS.items() if key.removesuffix(".weight").endswith(end)), None)
        if kind:
            raise BadModel(f"LoRA {path.name!r} is {kind}: only LoRA, LoHa and LoKr are supported; ask its author for one, or merge it")
        raise BadModel(f"{path.name!r} is no LoRA: it holds {key!r}; expected pairs of up and down matrices")
    role = next(name or match[f"role{i}"] for i, name in enumerate(_ROLES.values()) if match[f"role{i}"])
    return match["layer"].removeprefix("base_model.model.").replace(".", "_"), role


def described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's configuration, where diffusers has saved it with the tensors."""
    try:
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except json.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}


def root_scaled(said: Mapping[str, Any]) -> bool:
    """Whether α is divided by the root of the rank."""
    return any(key.endswith("use_rslora") and value for key, value in said.items())


def described_alpha(said: Mapping[str, Any], layer: str) -> float | None:
    """The α that PEFT's configuration gives a layer, by its flattened name."""
    parts = [key.removesuffix(".lora_alpha") for key in said if key.endswith(".lora_alpha")]
    part = max((part for part in parts if layer.startswith(part.replace(".", "_"))), key=len, default=None)
    if part is None:
        return None
    for name, alpha in (said.get(f"{part}.alpha_pattern") or {}).items():
        if layer.endswith("_" + name.replace(".", "_")):
            return float(alpha)
    return float(said[f"{part}.lora_alpha"])
