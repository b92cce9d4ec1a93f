"""Draws held-out scenes with the embedded model and measures each picture against what the scene is known to hold."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

import controls
from controls import estimators
from controls.depth import aligned_rmse
from core.files import publish
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from core.skeleton import Joints, draw_pose, pck
from renderer import Renderer
from toyland.captions import caption
from toyland.measure import REFERENCE_SCENES, Image, Palette, delta_125, psnr, regions
from toyland.render import Rendered, depth_map, render
from toyland.report import Measured
from toyland.scene import Scene, sample

Split = Literal["test", "composition"]
Kind = Literal["canny", "depth", "pose"]
SIZE_PX = 128  # of the scenes, and so of what is drawn, whatever size the model would choose by itself
KINDS: tuple[Kind, ...] = ("canny", "depth", "pose")


@dataclass(frozen=True)
class Settings:
    """What is measured, and how it is drawn.

    model: as in a request; its ControlNets lie beside it unless `controlnets` names them. references: training scenes that say how colours
    look.
    """

    model: str = "toyland"
    controlnets: Mapping[str, str] = field(default_factory=dict)
    count: int = 200
    steps: int = 20
    guidance_scale: float = 4.0
    seed: int = 0
    device: str | None = None
    references: int = REFERENCE_SCENES


class Judge:
    """One process's renderer and measures. folder: where control maps are put for the renderer to read."""

    def __init__(self, settings: Settings, palette: Palette, folder: Path) -> None:
        from pipelines.engine import default_control, resolve

        self.settings, self.palette, self.folder = settings, palette, folder
        self.renderer = Renderer.open(settings.model, settings.device)
        base = resolve(settings.model)
        self.family = self.renderer.engine.base(base)
        beside = {kind: default_control(base, kind) for kind in KINDS}
        self.nets = {kind: str(path) for kind, path in beside.items() if path is not None} | dict(settings.controlnets)
        self.estimate_depth, self.estimate_pose = estimators.find("depth"), estimators.find("pose")

    def __call__(self, job: tuple[Split, int]) -> Measured:
        """The numbers of one scene, by row of the report and column: several where the scene has several things to judge."""
        split, index = job
        scene = sample(index, split)
        numbers = defaultdict[tuple[str, str], list[float]](list)
        if split == "test":
            self._test(scene, index, numbers)
        else:
            self._composition(scene, index, numbers)
        return dict(numbers)

    def draw(self, prompt: str, index: int, kind: Kind | None = None, map_HWC: Image | None = None) -> Image:
        """One picture from a prompt, with or without a finished control map."""
        units: tuple[ControlUnit, ...] = ()
        if kind is not None and map_HWC is not None:
            path = self.folder / f"{kind}-{index}.png"
            publish(path, encode_png(map_HWC, {}))
            units = (ControlUnit(kind=kind, image=path, ready=True, model=self.nets[kind]),)
        request = RenderRequest(
            prompt=prompt,
            width=SIZE_PX,
            height=SIZE_PX,
            seed=self.settings.seed + index,
            steps=self.settings.steps,
            guidance_scale=self.settings.guidance_scale,
            controls=units,
        )
        (picture,) = self.renderer.render(request)
        return np.asarray(picture.image)

    def through_autoencoder(self, picture_HWC: Image) -> Image:
        """A picture encoded and decoded: what a model that makes no mistake would draw."""
        from pipelines.images import tensor_to_pictures

        return tensor_to_pictures(self.family.decode(self.family.encode_image(picture_HWC)))[0]

    def _test(self, scene: Scene, index: int, numbers: dict[tuple[str, str], list[float]]) -> None:
        rendered, text = render(scene), caption(scene)
        true_HWC = rendered.picture_HWC
        copy_HWC = self.through_autoencoder(true_HWC)
        plain_HWC = self.draw(text, index)
        numbers["vae", "value"].append(psnr(true_HWC, copy_HWC))
        numbers["vae_inside", "value"].append(psnr(true_HWC, copy_HWC, rendered.instance_HW > 0))
        canny = controls.get("canny")
        maps: dict[Kind, Image] = {
            "canny": canny.extract(true_HWC, canny.parse_params({})),
            "depth": depth_map(rendered.depth_HW)[0],
        }
        if scene.figure is not None:
            maps["pose"] = draw_pose(rendered.joints_18x2[None].astype(np.float64), *true_HWC.shape[1::-1])
        for kind, map_HWC in maps.items():
            drawn = {"floor": plain_HWC, "ceiling": copy_HWC}
            if kind in self.nets:
                drawn["value"] = self.draw(text, index, kind, map_HWC)
            for column, picture_HWC in drawn.items():
                numbers[kind, column] += self._obeys(kind, map_HWC, rendered, picture_HWC)
            if kind == "depth" and "value" in drawn:
                drawn["floor"] = self.draw(caption(another(scene, "test", self.settings.count)), index, kind, map_HWC)
                wanted = regions(scene, rendered)
                for column, picture_HWC in drawn.items():
                    named = self.palette.as_named(picture_HWC, wanted, scene.time)
                    numbers["colour", column] += named["colour"]
                    numbers["place", column] += named["ground"] + named["sky"]
        self._estimators(scene, rendered, numbers)

    def _composition(self, scene: Scene, index: int, numbers: dict[tuple[str, str], list[float]]) -> None:
        if "depth" not in self.nets:
            return
        rendered = render(scene)
        map_HWC = depth_map(rendered.depth_HW)[0]
        drawn = {
            "floor": self.draw(caption(another(scene, "composition", self.settings.count)), index, "depth", map_HWC),
            "value": self.draw(caption(scene), index, "depth", map_HWC),
            "ceiling": self.through_autoencoder(rendered.picture_HWC),
        }
        for column, picture_HWC in drawn.items():
            numbers["composition", column] += self.palette.as_named(picture_HWC, regions(scene, rendered), scene.time)["colour"]

    def _obeys(self, kind: Kind, map_HWC: Image, rendered: Rendered, picture_HWC: Image) -> list[float]:
        """The metric of one kind in its own unit; nothing where no estimator is installed."""
        if kind == "canny":
            score = controls.get("canny").compare(map_HWC, picture_HWC)
            return [] if score is None else [score.raw]
        if kind == "depth":
            return [] if self.estimate_depth is None else [depth_error(map_HWC, self.estimate_depth(picture_HWC))]
        return [] if self.estimate_pose is None else [pose_score(rendered, self.estimate_pose(picture_HWC))]

    def _estimators(self, scene: Scene, rendered: Rendered, numbers: dict[tuple[str, str], list[float]]) -> None:
        if self.estimate_depth is not None:
            estimated_HW = self.estimate_depth(rendered.picture_HWC)
            numbers["estimator_depth", "value"].append(depth_error(depth_map(rendered.depth_HW)[0], estimated_HW))
            numbers["estimator_delta", "value"].append(delta_125(rendered.depth_HW, estimated_HW))
        if self.estimate_pose is not None:
            people = self.estimate_pose(rendered.picture_HWC)
            numbers["estimator_person", "value"].append(float(bool(len(people)) == bool(scene.figure)))
            if scene.figure is not None:
                numbers["estimator_pose", "value"].append(pose_score(rendered, people))


def another(scene: Scene, split: Split, count: int) -> Scene:
    """The next of the first `count` scenes that shows the same kind of thing (a person, or shapes) and has another caption."""
    for step in range(1, count):
        found = sample((scene.seed + step) % count, split)
        if bool(found.figure) == bool(scene.figure) and caption(found) != caption(scene):
            return found
    return sample(count + scene.seed, split)


def depth_error(map_HWC: Image, estimated_HW: Image) -> float:
    """RMSE of an estimate against the exact map after the best scale and shift, in levels of 255."""
    return aligned_rmse(map_HWC[..., 0].astype(np.float64), estimated_HW.astype(np.float64))


def pose_score(rendered: Rendered, people_xy: Joints) -> float:
    """PCK@0.1 of the person found against the exact joints; 0 if nobody was found."""
    wanted_xy = rendered.joints_18x2.astype(np.float64)
    return max((pck(wanted_xy, person_xy) for person_xy in people_xy), default=0.0)
