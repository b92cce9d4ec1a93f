"""Measures the embedded model on scenes it has never seen, through the renderer that users have, and says whether its goals are met.

Every picture is drawn from the scene's own caption with its exact maps. Floors are pictures without the control, or with another scene's
caption; ceilings are the true pictures through the autoencoder, which carry its blur but no mistake. Scenes are shared out over processes
of one thread each: at this size that draws more than threads do.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from core.errors import BadRequest
from core.files import publish, sha256_file
from core.images import encode_png
from core.provenance import library_versions
from core.sheet import contact_sheet
from core.spread import default_workers, spread
from toyland.captions import caption
from toyland.judge import Judge, Settings, Split
from toyland.measure import Palette
from toyland.report import Measured, Report, build_report
from toyland.scene import sample

SHEET_SIDE = 6


def evaluate(settings: Settings, *, workers: int | None = None, on_progress: Callable[[int, int], None] | None = None) -> Report:
    """Measures `count` held-out scenes, and as many of colour and shape pairs never seen.

    workers: processes; default one per core, or one where there is an accelerator. on_progress(done, scenes) is called after every scene.
    The numbers do not depend on `workers`.

    Raises:
        BadRequest: no scene to measure.
        BadModel, Mismatch: the model or a ControlNet cannot be used.
    """
    if settings.count < 1:
        raise BadRequest(f"count = {settings.count}: at least 1 scene is measured")
    started, described = time.monotonic(), _described(settings)
    jobs: list[tuple[Split, int]] = [(split, index) for index in range(settings.count) for split in ("test", "composition")]
    scenes: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for numbers in _measured(settings, Palette.measure(settings.references), Path(folder), jobs, workers or _default_workers(settings)):
            scenes.append(numbers)
            if on_progress:
                on_progress(len(scenes), len(jobs))
    return build_report(scenes, described | {"minutes": round((time.monotonic() - started) / 60, 1)})


def save(report: Report, folder: Path) -> list[Path]:
    """Publishes `evaluation.json` and `evaluation.md`, each whole or not at all."""
    paths = [folder / "evaluation.json", folder / "evaluation.md"]
    for path, text in zip(paths, (report.as_json(), report.as_markdown()), strict=True):
        publish(path, text.encode())
    return paths


def card_sheet(settings: Settings, path: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Publishes 6 × 6 pictures drawn from held-out captions without any control, people and shapes in turn."""
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(settings, Palette({}), Path(folder))
        half = SHEET_SIDE**2 // 2
        scenes = [sample(seed, "test") for seed in range(10 * half)]
        people = [scene for scene in scenes if scene.figure][:half]
        things = [scene for scene in scenes if not scene.figure][:half]
        captions = [caption(scene) for pair in zip(people, things, strict=True) for scene in pair]
        pictures = []
        for index, text in enumerate(captions):
            pictures.append(judge.draw(text, index))
            if on_progress:
                on_progress(index + 1, len(captions))
    sheet_HWC = contact_sheet([[picture] for picture in pictures], captions, columns=SHEET_SIDE, cell_px=192)
    publish(path, encode_png(sheet_HWC, {}))
    return path


def _measured(settings: Settings, palette: Palette, folder: Path, jobs: list[tuple[Split, int]], workers: int) -> Iterator[Measured]:
    """The jobs' numbers, in the jobs' order."""
    if workers > 1:
        Judge(settings, palette, folder)  # what is wrong with a model is said here, once, and not by every process
    yield from spread(partial(Judge, settings, palette, folder), jobs, workers)


def _default_workers(settings: Settings) -> int:
    from pipelines.engine import choose_place

    return default_workers(choose_place(settings.device).device.type)


def _described(settings: Settings) -> dict[str, Any]:
    """What another person needs to measure the same."""
    from pipelines.engine import choose_place, resolve

    base = resolve(settings.model)
    parts = [base, *(path for path in base.resolve().parent.iterdir() if path.name.startswith(("controlnet-", "estimator-")))]
    weights = {
        f"{part.name}/{file.relative_to(part)}": sha256_file(file) for part in sorted(parts) for file in sorted(part.rglob("*.safetensors"))
    }
    return {
        **asdict(settings),
        "device": str(choose_place(settings.device).device),
        "sampler": "euler",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": library_versions(),
        "weights_sha256": weights,
    }
