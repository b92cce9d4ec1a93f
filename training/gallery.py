"""The held-out samples drawn with the weights of the moment, by the renderer itself: scores, and a sheet of control, picture and truth."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from controls.prepare import settled
from core.control import Image, Score
from core.files import publish
from core.images import encode_png
from core.intervals import bootstrap
from core.request import ControlUnit, RenderRequest
from core.sheet import contact_sheet
from pipelines.images import tensor_to_pictures
from pipelines.prompt import escaped
from renderer import Renderer
from training.controlnet import ControlNetTask
from training.export import write_folder
from training.pairs import Pair
from training.task import Run

BOUNDS = "bounds.json"


@dataclass(frozen=True)
class Bounds:
    """What the samples' fidelity lies between: that of pictures drawn without a control, and of the true ones through the autoencoder."""

    floor: float
    ceiling: float

    def __str__(self) -> str:
        return f"floor {self.floor:.3f} (drawn without the condition), ceiling {self.ceiling:.3f} (the true pictures)"


def read_bounds(out: Path) -> Bounds | None:
    """Those of a run that has drawn its samples."""
    try:
        return Bounds(**json.loads((out / BOUNDS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@dataclass
class Gallery:
    """Draws the held-out samples with a renderer that shares the base with the training."""

    task: ControlNetTask
    renderer: Renderer
    steps: int
    guidance_scale: float | None
    out: Path

    def draw(self, run: Run) -> tuple[float | None, tuple[float, float] | None]:
        """The mean fidelity of the samples, drawn at scale 1 with fixed seeds, and its 95% interval; None where it cannot be measured.

        The sheet is `<out>/grids/step-<step>.png`. The first time, floor and ceiling are measured too and said.
        """
        task, home = self.task, self.out / "monitor"
        net = home / f"step-{run.step:08d}"
        home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(net, ignore_errors=True)
        net.mkdir()
        strips, captions, fidelity = [], [], list[float]()
        try:
            write_folder(net, task.finished(run.weights()))
            for number, position in enumerate(task.held_out):
                pair = task.pairs[position]
                maps, truth_HWC = task.loader.maps(pair), task.loader.picture(pair)
                paths = [home / f"map-{number}-{place}.png" for place in range(len(maps))]
                for path, map_HWC in zip(paths, maps, strict=True):
                    publish(path, encode_png(map_HWC))
                drawn_HWC = self._drawn(pair.caption, truth_HWC, self._units(paths, str(net)))
                scores = self._scores(pair, maps, drawn_HWC)
                fidelity += _mean(scores)
                strips.append([*maps, drawn_HWC, truth_HWC])
                captions.append(f"{pair.caption}\n{', '.join(f'{score.metric} {score.value:.2f}' for score in scores) or 'not measured'}")
        finally:
            shutil.rmtree(net, ignore_errors=True)
        title = f"{task.name}, step {run.step}: control, picture, truth"
        sheet = contact_sheet(strips, captions, columns=2, cell_px=192, title=title)
        publish(self.out / "grids" / f"step-{run.step:08d}.png", encode_png(sheet))
        if not fidelity:
            return None, None
        if read_bounds(self.out) is None and (bounds := self.bounds()):
            publish(self.out / BOUNDS, json.dumps(vars(bounds)).encode())
            run.say(f"{task.name}: fidelity lies between {bounds}")
        return float(np.mean(fidelity)), bootstrap([[value] for value in fidelity])

    def bounds(self) -> Bounds | None:
        """Floor and ceiling of the samples; None where they cannot be measured."""
        floor, ceiling = list[float](), list[float]()
        base = self.task.base
        for position in self.task.held_out:
            pair = self.task.pairs[position]
            maps, truth_HWC = self.task.loader.maps(pair), self.task.loader.picture(pair)
            copy_HWC = tensor_to_pictures(base.decode(base.encode_image(truth_HWC)))[0]
            floor += _mean(self._scores(pair, maps, self._drawn(pair.caption, truth_HWC, ())))
            ceiling += _mean(self._scores(pair, maps, copy_HWC))
        return Bounds(float(np.mean(floor)), float(np.mean(ceiling))) if floor and ceiling else None

    def _scores(self, pair: Pair, maps: Sequence[Image], picture_HWC: Image) -> list[Score]:
        """How well a picture obeys each condition, measured with the settings that the condition was made with."""
        loader, found = self.task.loader, []
        for number, (control, map_HWC) in enumerate(zip(loader.controls, maps, strict=True)):
            if control is None:
                continue
            params = settled(control, control.parse_params({}), self.renderer.model) if pair.conditions else loader.params(pair, number)
            found.append(control.compare(map_HWC, picture_HWC, params))
        return [score for score in found if score is not None]

    def _units(self, paths: Sequence[Path], net: str) -> tuple[ControlUnit, ...]:
        kinds = [control.name if control else "scribble" for control in self.task.loader.controls]  # any kind that takes a finished map
        return tuple(ControlUnit(kind=kind, image=path, ready=True, model=net) for kind, path in zip(kinds, paths, strict=True))

    def _drawn(self, caption: str, like_HWC: Image, units: tuple[ControlUnit, ...]) -> Image:
        values: dict[str, Any] = {"guidance_scale": self.guidance_scale} if self.guidance_scale is not None else {}
        request = RenderRequest(
            prompt=escaped(caption),  # captions are plain text in training
            model=self.renderer.model,
            height=like_HWC.shape[0],
            width=like_HWC.shape[1],
            steps=self.steps,
            seed=0,
            controls=units,
            **values,
        )
        (picture,) = self.renderer.render(request)
        return np.asarray(picture.image)


def _mean(scores: Sequence[Score]) -> list[float]:
    """One number for a sample, or none."""
    return [float(np.mean([score.value for score in scores]))] if scores else []
