"""Networks with weights and without, made at the same time by threads of one process, as on the page."""

import threading
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from pipelines.layouts.part import outline
from pipelines.loading import load_part, read_config
from pipelines.place import Place
from tests import tinymodels


def test_a_network_is_loaded_while_another_thread_makes_outlines(tmp_path: Path) -> None:
    base = tinymodels.build_base(tmp_path)
    config, over = read_config(base / "unet" / "config.json"), threading.Event()

    def outlines() -> None:
        while not over.is_set():
            outline(UNet2DConditionModel, config)

    other = threading.Thread(target=outlines)
    other.start()
    try:
        for _ in range(20):
            network = load_part(CLIPTextModel, base / "text_encoder", Place(torch.device("cpu"), torch.float32))
            assert not any(parameter.is_meta for parameter in network.parameters())
    finally:
        over.set()
        other.join()
