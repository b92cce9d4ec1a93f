# ruff: noqa: E402
"""What every worker imports before it draws; imported once, by the process that workers are forked from (`batch.workers.warm`)."""

import gc

gc.disable()  # a million objects are made, and none goes: looking for garbage meanwhile takes a fifth of the time

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

gc.freeze()  # what is here is shared by all workers, and never looked at again
gc.enable()
