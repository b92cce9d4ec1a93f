"""The held-out samples drawn with the weights of the moment, by the renderer itself: scores, and a sheet of control, picture and truth."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.files import publish
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from core.sheet import contact_sheet
from renderer import Renderer
from training.controlnet import ControlNetTask
from training.export import write_folder
from training.task import Run


class Gallery:
    """Draws the held-out samples with a renderer that shares the base with the training."""

    def __init__(self, task: ControlNetTask, renderer: Renderer, steps: int, guidance_scale: float | None, out: Path) -> None:
        self.task, self.renderer, self.steps, self.guidance_scale, self.out = task, renderer, steps, guidance_scale, out

    def draw(self, run: Run) -> float | None:
        """The mean fidelity of the samples, drawn at scale 1 with fixed seeds; None where the kind of control cannot be measured.

        The sheet is `<out>/grids/step-<step>.png`.
        """
        task, home = self.task, self.out / "monitor"
        net = home / f"step-{run.step:08d}"
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(net, ignore_errors=True)
        net.mkdir()
        strips, captions, scores = [], [], []
        try:
            write_folder(net, task.finished(run.weights()))
            for number, position in enumerate(task.held_out):
                pair = task.pairs[position]
                maps, truth_HWC = task.loader.maps(pair), task.loader.picture(pair)
                paths = [home / f"map-{number}-{place}.png" for place in range(len(maps))]
                for path, map_HWC in zip(paths, maps, strict=True):
                    publish(path, encode_png(map_HWC))
                (picture,) = self.renderer.render(self._request(paths, pair.caption, truth_HWC.shape, str(net)))
                measured = [score for score in picture.fidelity if score is not None and task.loader.control]
                if measured:
                    scores.append(float(np.mean([score.value for score in measured])))
                strips.append([*maps, np.asarray(picture.image), truth_HWC])
                said = ", ".join(f"{score.metric} {score.value:.2f}" for score in measured)
                captions.append(f"{pair.caption}\n{said or 'not measured'}")
        finally:
            shutil.rmtree(net, ignore_errors=True)
        title = f"{task.name}, step {run.step}: control, picture, truth"
        sheet = contact_sheet(strips, captions, columns=2, cell_px=192, title=title)
        publish(self.out / "grids" / f"step-{run.step:08d}.png", encode_png(sheet))
        return float(np.mean(scores)) if scores else None

    def _request(self, paths: Sequence[Path], caption: str, shape: tuple[int, ...], net: str) -> RenderRequest:
        kinds = [control.name if control else "scribble" for control in self.task.loader.controls]  # any kind that takes a finished map
        values: dict[str, Any] = {"guidance_scale": self.guidance_scale} if self.guidance_scale is not None else {}
        units = [ControlUnit(kind=kind, image=path, ready=True, model=net) for kind, path in zip(kinds, paths, strict=True)]
        return RenderRequest(
            prompt=caption,
            model=self.renderer.model,
            height=shape[0],
            width=shape[1],
            steps=self.steps,
            seed=0,
            controls=tuple(units),
            **values,
        )
