"""Captions are plain text in training, and so in the pictures that fidelity is measured on, whatever syntax of prompts they look like."""

import json
import shutil
from pathlib import Path

import torch

from core.images import decode
from pipelines.prompt import escaped, parse
from tests.training.test_controlnet import config
from training.run import train_controlnet

ODD = ("a (red) sphere", "a __colour__ sphere", "{red|blue}", "<lora:x:1> sphere", "[a:b:0.5]", "red AND blue", "a # b", "((((", "<lora:>")


def test_captions_that_look_like_prompts_are_drawn_as_they_are_learned(base: Path, dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(dataset, folder, ignore=shutil.ignore_patterns("cache"))
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"text": ODD[number % len(ODD)]} for number, row in enumerate(rows)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monitor = {"every": 4, "samples": 10, "fidelity_every": 4, "steps": 1}
    run = train_controlnet(config(base, folder, tmp_path / "run", monitor=monitor))
    assert run.step == 4
    assert decode(tmp_path / "run" / "grids" / "step-00000004.png").any()
    task = run.task
    for index, caption in enumerate(ODD):
        ((_, wording),) = parse(escaped(caption), 1).parts[0].wordings
        learned = task.batch([index])["tokens_BLD"]
        assert torch.equal(learned, task.base.encode_prompt(wording).tokens_BLD)
        assert torch.equal(learned, task.base.encode_prompt(caption).tokens_BLD)
