"""One .safetensors or .gguf file as a checkpoint: which family it is and how it is built are read from its tensors, never from its name.

What the file lacks (autoencoder, text encoders, T5's tokenizer) is taken from a folder of its own name beside it, in the diffusers layout:
`flux1-dev.safetensors` and `flux1-dev/text_encoder_2`. What neither shapes nor the published models tell, a file may say in its metadata,
as `limn.<part>`: a JSON object of the entries in `SAID`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import ref

from core.errors import BadModel
from pipelines.checkpoint import Folder
from pipelines.layouts import prediction
from pipelines.layouts.contents import REFINER, control_in, family_in, parts_in
from pipelines.layouts.header import Header
from pipelines.layouts.part import Part, assemble, guarded
from pipelines.layouts.tokenizer import TOKENS, clip_tokenizer
from pipelines.loading import refuse_pickle
from pipelines.place import Place

# What a file may say of a part's configuration beyond its shapes.
SAID = (
    "attention_head_dim", "num_attention_heads", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "axes_dims_rope",
    "num_trans_head", "limn_kind", "limn_kinds", "limn_channels",
    "global_pool_conditions", "controlnet_conditioning_channel_order", "shift", "force_upcast", "addition_time_embed_dim",
    "force_zeros_for_pooled_projection",
)  # fmt: skip
_TITLES = {"sd": "Stable Diffusion", "sdxl": "Stable Diffusion XL", "sd3": "Stable Diffusion 3", "flux": "FLUX.1"}
_PIPELINES = {
    "sd": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux": "FluxPipeline",
}
_NEEDS: Mapping[str, Mapping[str, str]] = {
    "sd": {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"},
    "sdxl": {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer_2": "CLIPTokenizer",
    },
    "sd3": {
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer_3": "T5TokenizerFast",
    },
    "flux": {
        "transformer": "FluxTransformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "T5EncoderModel",
        "tokenizer_2": "T5TokenizerFast",
    },
}
_V_CELLS = 96  # Stable Diffusion 2's velocity models were made for 768 pixels


class SingleFile:
    """A checkpoint in one file; see `pipelines.checkpoint.Checkpoint`.

    family: "sd", "sdxl", "sd3" or "flux" for a whole model, "" for a control. measures: whether a network may be asked what it predicts.

    Raises:
        BadModel: the file is missing, damaged, a pickle, or nothing that can be drawn or steered with.
    """

    def __init__(self, path: Path, *, measures: bool = True) -> None:
        refuse_pickle(path)
        self.path, self.measures = path, measures
        self.header = Header.read(path)
        self.family = family_in(self.header)
        self.beside = Folder(path.with_suffix("")) if path.with_suffix("").is_dir() else None
        self._unet: Callable[[], Any] = lambda: None
        self.parts = self._guarded(self._read_parts)

    @cached_property
    def classes(self) -> Mapping[str, str]:
        """The class of every part that a model of its family has, whether the file holds it or not; SD3's T5 where it can be used."""
        if not self.family:
            return {"": self.parts[""].kind}
        needs = dict(_NEEDS[self.family])
        if self.family == "sd3" and not (self.has("text_encoder_3") and self.has("tokenizer_3")):
            needs = {part: kind for part, kind in needs.items() if not part.endswith("_3")}
        if self.family == "sdxl" and self._refines:
            needs = {part: kind for part, kind in needs.items() if part not in ("text_encoder", "tokenizer")}
        return {**needs, "scheduler": str(self.config("scheduler")["_class_name"]), "": _PIPELINES[self.family]}

    @property
    def settings(self) -> Mapping[str, Any]:
        """What `model_index.json` would say."""
        return {"force_zeros_for_empty_prompt": not self._refines} if self.family == "sdxl" else {}

    def has(self, part: str) -> bool:
        """Whether a part is in the file, beside it, or ships with Limn."""
        if part in self.parts or part == "scheduler" or (self.beside is not None and (self.beside.path / part).is_dir()):
            return True
        return part in self._needs and self._needs[part] == "CLIPTokenizer"

    def remedy(self, part: str) -> str:
        """What to do about a part that is not there."""
        published = {"T5EncoderModel": "T5 (google/t5-v1_1-xxl)", "T5TokenizerFast": "T5's tokenizer (google/t5-v1_1-xxl)"}
        what = published.get(self._needs.get(part, ""), f"the {part}")
        return f"put {what} as {str(self.path.with_suffix('') / part)!r} beside the file, or give a diffusers folder"

    def config(self, part: str) -> dict[str, Any]:
        """See `Checkpoint.config`."""
        if part == "scheduler":
            return {**self._scheduler(), **self._said(part)}
        if part in self.parts:
            return {"_class_name": self.parts[part].kind, **self.parts[part].config}
        return self._outside(part).config(part)

    def network(self, kind: Any, part: str, place: Place) -> Any:
        """See `Checkpoint.network`."""
        if part not in self.parts:
            return self._outside(part).network(kind, part, place)
        network = self._guarded(lambda: assemble(kind, self.parts[part], place, f"model {str(self.path)!r}"))
        if part == "unet":
            self._unet = ref(network)
            if self.family == "sd" and self._prediction == "v_prediction" and "modelspec.resolution" not in self.header.metadata:
                network.register_to_config(sample_size=_V_CELLS)
        return network

    def tokenizer(self, kind: Any, part: str) -> Any:
        """See `Checkpoint.tokenizer`: CLIP's ships with Limn."""
        if self.beside is not None and (self.beside.path / part).is_dir():
            return self.beside.tokenizer(kind, part)
        if self._needs.get(part) != "CLIPTokenizer":
            raise BadModel(f"model {str(self.path)!r} has no {part!r}: {self.remedy(part)}")
        encoder = self.config(part.replace("tokenizer", "text_encoder"))
        if encoder["vocab_size"] != TOKENS:
            raise BadModel(
                f"model {str(self.path)!r}: its text encoder knows {encoder['vocab_size']} tokens, CLIP's vocabulary has {TOKENS}; "
                f"{self.remedy(part)}"
            )
        return clip_tokenizer(kind, "!" if encoder["hidden_act"] == "gelu" else "<|endoftext|>")

    def files(self, part: str) -> list[Path]:
        """See `Checkpoint.files`."""
        return [self.path] if part in self.parts else self._outside(part).files(part)

    @property
    def _needs(self) -> Mapping[str, str]:
        return _NEEDS.get(self.family, {})

    @property
    def _refines(self) -> bool:
        """SDXL's refiner reads the second text encoder alone."""
        return self.header.has(REFINER)

    def _outside(self, part: str) -> Folder:
        if self.beside is None or not (self.beside.path / part).is_dir():
            title = _TITLES.get(self.family, "model")
            raise BadModel(f"{title} file {str(self.path)!r} holds no {part}: {self.remedy(part)}")
        return self.beside

    def _read_parts(self) -> dict[str, Part]:
        header, family = self.header, self.family
        found = {"": control_in(header)} if not family else {name: read() for name, read in parts_in(header, family).items()}
        return {
            name: replace(part, config={**part.config, **self._size(name), **self._statistics(name), **self._said(name)})
            for name, part in found.items()
        }

    def _size(self, part: str) -> dict[str, Any]:
        """The size that a denoising network was made for: what the metadata say, else the published one."""
        if part not in ("unet", "transformer") or self.family == "flux":
            return {}
        side, _, other = self.header.metadata.get("modelspec.resolution", "").lower().partition("x")
        if side.isdigit() and other.isdigit() and 64 <= int(side) <= 4096:
            return {"sample_size": int(side) // 8}
        return {"sample_size": 64 if self.family == "sd" else 128}

    def _statistics(self, part: str) -> dict[str, Any]:
        return self._edm[1] if part == "vae" and self._edm is not None else {}

    def _said(self, part: str) -> dict[str, Any]:
        values = json.loads(self.header.metadata.get(f"limn.{part or 'control'}", "{}"))
        return {name: value for name, value in values.items() if name in SAID}

    def _scheduler(self) -> dict[str, Any]:
        """As the family's published models say, with what this file was trained to predict."""
        if self.family == "sd3":
            return {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "num_train_timesteps": 1000}
        if self.family == "flux":
            flow: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
            dynamic = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
            return flow | (dynamic if self.parts["transformer"].config["guidance_embeds"] else {})
        if self._edm is not None:
            return self._edm[0]
        table = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
        kind = "EulerDiscreteScheduler" if self.family == "sdxl" else "DDIMScheduler"
        zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if prediction.zero_terminal(self.header) else {}
        return {
            "_class_name": kind, **table, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
            "timestep_spacing": "leading", "prediction_type": self._prediction, **zero,
        }  # fmt: skip

    @cached_property
    def _edm(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        return prediction.edm(self.header) if self.family == "sdxl" else None

    @cached_property
    def _prediction(self) -> str:
        stated = prediction.stated(self.header)
        if stated is not None or self.family == "sdxl" or not self.parts["unet"].config["use_linear_projection"]:
            return stated or "epsilon"
        if not self.measures:
            return "v_prediction"
        import torch
        from diffusers import UNet2DConditionModel

        loaded = self._unet() or self.network(UNet2DConditionModel, "unet", Place(torch.device("cpu"), torch.float32))
        return prediction.measured(loaded)

    def _guarded(self, work: Callable[[], Any]) -> Any:
        return guarded(work, f"model {str(self.path)!r}", "fetch the file again, or give the model as a diffusers folder")
