"""What a flow checkpoint's `scheduler_config.json` says about the noise levels that its pictures are drawn at.

Large pictures keep their structure under more noise, so flow models are sampled on shifted levels: σ' = s·σ/(1 + (s − 1)·σ), which
multiplies σ/α by s. The factor s is fixed in the checkpoint (SD3, Z-Image) or grows with the picture (FLUX, Qwen-Image).

Source: Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024, section 5.3.2.
"""

import math
from collections.abc import Mapping
from typing import Any

from core.errors import BadModel


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler config is one of a rectified flow: a FlowMatch scheduler, or one of the others set to flow."""
    return str(config.get("_class_name", "")).startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))


def shifted(sigma: float, shift: float) -> float:
    """The flow path's σ with σ/(1 − σ) multiplied by `shift`."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


def flow_shift(config: Mapping[str, Any], tokens: int) -> float:
    """The shift factor for a picture of `tokens` transformer tokens, from a flow scheduler's config.

    A dynamic shift is a straight line through (base_image_seq_len, base_shift) and (max_image_seq_len, max_shift): the factor's
    logarithm where `time_shift_type` is "exponential", the factor itself where it is "linear". The line goes on beyond both points.

    Raises:
        BadModel: an unknown `time_shift_type`.
    """
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift", 1.0) if config.get("use_flow_sigmas") else config.get("shift", 1.0))
    fewest, most = float(config.get("base_image_seq_len", 256)), float(config.get("max_image_seq_len", 4096))
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    mu = low + (tokens - fewest) * (high - low) / (most - fewest)
    kind = str(config.get("time_shift_type", "exponential"))
    if kind not in ("exponential", "linear"):
        raise BadModel(f"scheduler time_shift_type {kind!r} is unknown: known are exponential, linear")
    return math.exp(mu) if kind == "exponential" else mu


def flow_terminal(config: Mapping[str, Any]) -> float | None:
    """The level that the last step before the picture is stretched to (`shift_terminal`), where the config asks for that."""
    terminal = config.get("shift_terminal")
    return float(terminal) if terminal else None


def flow_range(config: Mapping[str, Any], length: int) -> tuple[float, float]:
    """The lowest and the highest σ, before the shift, that diffusers spaces a flow checkpoint's own levels between.

    A fixed shift is applied to the lowest here and to all levels again afterwards, since FlowMatchEulerDiscreteScheduler keeps it
    shifted; its DPM-Solver begins one training timestep below pure noise (Sana).
    """
    if config.get("use_flow_sigmas") and "DPMSolver" in str(config.get("_class_name", "")):
        return 1.0 / length, 1.0 - 1.0 / length
    fixed = 1.0 if config.get("use_dynamic_shifting") or config.get("use_flow_sigmas") else float(config.get("shift", 1.0))
    return shifted(1.0 / length, fixed), 1.0
