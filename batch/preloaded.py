"""What every worker imports before it draws; imported once, by the process that workers are forked from (`batch.workers.warm`)."""

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import controls
from pipelines import doctor, engine, mixing, outline, passes, planning
from renderer import Renderer

__all__ = [
    "AutoencoderKL", "CLIPTextModel", "CLIPTokenizer", "ControlNetModel", "Renderer", "UNet2DConditionModel", "doctor", "mixing", "outline",
    "passes", "planning",
]  # fmt: skip

# The kinds and families are modules of their own.
controls.names()
engine.families()
