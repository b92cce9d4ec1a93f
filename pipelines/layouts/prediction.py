"""What a UNet was trained to predict, noise or velocity, which its shapes do not say.

A file may say so: in its metadata (`modelspec.prediction_type`), by empty tensors that trainers leave (`v_pred`, `ztsnr`), or in a .yaml
beside it, as A1111 reads. Stable Diffusion 2 was published both ways without a word: there the network is asked.
"""

from pathlib import Path
from typing import Any

import torch

from core.errors import BadModel
from pipelines.layouts.header import Header

_VELOCITY = {"v", "v_prediction", "velocity", "v-prediction", "vpred"}
_NOISE = {"epsilon", "eps", "noise"}
_CERTAIN = 0.5  # a model of noise gives it back almost whole at the last step (correlation near 1), one of velocity gives the picture


def stated(header: Header) -> str | None:
    """ "epsilon" or "v_prediction" where the file or the .yaml beside it says which; else None.

    Raises:
        BadModel: the .yaml cannot be read.
    """
    said = header.metadata.get("modelspec.prediction_type", "").lower()
    if "v_pred" in header.shapes or said in _VELOCITY:
        return "v_prediction"
    if said in _NOISE:
        return "epsilon"
    beside = header.path.with_suffix(".yaml")
    return _from_yaml(beside) if beside.is_file() else None


def edm(header: Header) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The scheduler's configuration and the autoencoder's statistics of a model of the EDM kind, by the tensors that mark it; else None.

    Source: playgroundai/playground-v2.5-1024px-aesthetic and stabilityai/cosxl, as their files are.
    """
    if {"edm_mean", "edm_std"} <= header.shapes.keys():
        found = header.tensors({"latents_mean": "edm_mean", "latents_std": "edm_std"})
        statistics = {name: [float(value) for value in tensor.flatten()] for name, tensor in found.items()}
        scheduler = {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon", "sigma_data": 0.5}
        return scheduler | {"sigma_min": 0.002, "sigma_max": 80.0}, statistics | {"scaling_factor": 0.5}
    if "edm_vpred.sigma_max" not in header.shapes:
        return None
    ends = {name: f"edm_vpred.{name}" for name in ("sigma_min", "sigma_max") if f"edm_vpred.{name}" in header.shapes}
    told = {name: float(tensor.flatten()[0]) for name, tensor in header.tensors(ends).items()}
    scheduler = {"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0}
    return scheduler | {"sigma_min": 0.002} | told, {}


def zero_terminal(header: Header) -> bool:
    """Whether the file says that its noise levels end in pure noise."""
    return "ztsnr" in header.shapes


@torch.inference_mode()
def measured(unet: Any, tokens: int = 77) -> str:
    """ "epsilon" where the network, shown pure noise at the last step, answers with that noise; else "v_prediction"."""
    side = min(int(unet.config.sample_size or 32), 32)
    parameter = next(unet.parameters())
    noise_BCHW = torch.randn((1, int(unet.config.in_channels), side, side), generator=torch.Generator().manual_seed(0))
    x_BCHW = noise_BCHW.to(parameter.device, parameter.dtype)
    text_BLD = torch.zeros((1, tokens, int(unet.config.cross_attention_dim)), device=parameter.device, dtype=parameter.dtype)
    answer = unet(x_BCHW, 999, encoder_hidden_states=text_BLD, return_dict=False)[0].float().cpu()
    channels = answer.shape[1]
    both = torch.stack([answer.flatten(), noise_BCHW[:, :channels].flatten()])
    return "epsilon" if float(torch.corrcoef(both)[0, 1]) > _CERTAIN else "v_prediction"


def _from_yaml(path: Path) -> str | None:
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        parameters = values["model"]["params"]
        said = str(parameters.get("parameterization", "eps"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadModel(f"{str(path)!r} beside the model cannot be read as its configuration ({reason}): mend or remove it") from None
    return "v_prediction" if said in _VELOCITY else "epsilon"
