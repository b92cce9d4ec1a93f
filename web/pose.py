"""Pose: people whose joints are dragged on a canvas, in and out as OpenPose's JSON, and into Create as a finished pose map."""

import json
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import controls
from core.errors import BadRequest, LimnError
from core.files import publish
from core.images import decode, encode_png, sha256_pixels
from core.openpose import People, draw_people, openpose_from_people, people_from_openpose
from core.request import build_request
from core.skeleton import COLOURS, JOINTS, LIMBS, Joints, detect_joints
from web import form, words
from web.fields import settings_of
from web.handlers import NOTHING, Changes, Handlers
from web.settings import pool
from web.upload import upload_file

MOST_PEOPLE = 20
# Somebody who stands, in the order of core.skeleton.JOINTS, as fractions of the canvas.
STANDING = (
    (0.30, 0.16), (0.30, 0.26), (0.22, 0.26), (0.18, 0.40), (0.16, 0.53), (0.38, 0.26), (0.42, 0.40), (0.44, 0.53), (0.25, 0.54),
    (0.24, 0.72), (0.24, 0.90), (0.35, 0.54), (0.36, 0.72), (0.36, 0.90), (0.28, 0.14), (0.32, 0.14), (0.26, 0.16), (0.34, 0.16),
)  # fmt: skip
HELP = "Drag a joint; with Shift, the whole person. Double-click hides a joint. Keys: arrows move the joint, N takes the next one."

_QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}


class _Pose:
    """The tab's behaviour. People are lists of 18 joints, each [x, y] as fractions of the canvas, or None where unseen."""

    def __init__(self, create: Handlers, parts: dict[str, Any], tabs: Any) -> None:
        self.create, self.parts, self.tabs = create, parts, tabs

    def use(self, people: Any, width: Any, height: Any) -> Changes:
        """The people as Create's first control."""
        try:
            size = build_request({"width": width, "height": height})
            map_HWC = draw_people(People.of(joints(people, size.width, size.height)), size.width, size.height)
            path = self.create.service.out / "controls" / f"{sha256_pixels(map_HWC)[:24]}.png"
            publish(path, encode_png(map_HWC))
        except LimnError as error:
            return {self.parts["said"]: words.note(words.plain(str(error), {}), problem=True)}
        inputs = self.create.parts.inputs
        changes: Changes = {
            inputs[f"control.0.{slot}"]: gr.update(**shown) for slot, shown in zip(pool(), settings_of("pose"), strict=True)
        }
        return changes | {
            inputs["control.0.kind"]: "pose",
            inputs["control.0.ready"]: True,
            inputs["control.0.on"]: True,
            inputs["control.0.image"]: str(self.create.parts.download.move_resource_to_block_cache(str(path))),
            self.create.parts.columns[0]: gr.update(visible=True),
            self.parts["said"]: "",
            self.tabs: gr.update(selected="create"),
        }

    def write(self, people: Any, width: Any, height: Any) -> Changes:
        """OpenPose's JSON, to be saved."""
        try:
            size = build_request({"width": width, "height": height})
            text = openpose_from_people(People.of(joints(people, size.width, size.height)), size.width, size.height)
        except LimnError as error:
            return {self.parts["said"]: words.note(words.plain(str(error), {}), problem=True)}
        return {self.parts["json"]: gr.update(value=text, visible=True), self.parts["said"]: ""}

    def load(self, path: str | None) -> Changes:
        """People from OpenPose's JSON, a pose map, or (with an estimator) a picture."""
        if not path:
            return NOTHING
        try:
            people = read_people(Path(path))
        except LimnError as error:
            text = words.plain(str(error), {f"{Path(path).parent}/": ""})
            return {self.parts["said"]: words.note(text, problem=True)}
        return {
            self.parts["people"]: people,
            self.parts["said"]: words.note(f"{len(people)} people are loaded.") if len(people) != 1 else "",
        }


def joints(people: Any, width: int, height: int) -> Joints:
    """What the canvas holds as joints in pixels, (P, 18, 2).

    Raises:
        BadRequest: it is something else, or nobody.
    """
    try:
        rows = [[(np.nan, np.nan) if joint is None else (float(joint[0]), float(joint[1])) for joint in person] for person in people]
        found: Joints = np.array(rows, np.float64).reshape(len(rows), len(JOINTS), 2)
    except (TypeError, ValueError, IndexError, OverflowError):
        raise BadRequest(f"the people are not lists of {len(JOINTS)} joints: reload the page") from None
    if not 1 <= len(found) <= MOST_PEOPLE:
        raise BadRequest(f"{len(found)} people: 1 to {MOST_PEOPLE} can be drawn")
    return np.where((found >= 0) & (found <= 1), found, np.nan) * (width, height)


def read_people(path: Path) -> list[list[list[float] | None]]:
    """People, as the canvas holds them, from a file.

    Raises:
        BadRequest, BadImage: it is neither, or shows nobody, or there is no estimator for pictures.
    """
    control = controls.get("pose")
    data = path.read_bytes()
    if data[:64].lstrip()[:1] in (b"{", b"["):
        found, (width, height) = people_from_openpose(data, 512, 512)
        body = found.body
    else:
        map_HWC = decode(data)
        if not form.looks_finished("pose", path):
            if not control.available():
                raise BadRequest(f"{path.name!r} is a picture, and no pose estimator is installed: give a pose map or OpenPose JSON")
            map_HWC = control.extract(map_HWC, control.parse_params({}))
        body, width, height = detect_joints(map_HWC), float(map_HWC.shape[1]), float(map_HWC.shape[0])
    if not len(body):
        raise BadRequest(f"{path.name!r} shows nobody: give a picture with people in it")
    return [
        [[round(x / width, 4), round(y / height, 4)] if np.isfinite([x, y]).all() else None for x, y in person]
        for person in body[:MOST_PEOPLE]
    ]


def editor(**options: Any) -> Any:
    """The canvas; its value is the list of people."""
    data = {"limbs": LIMBS, "colours": COLOURS, "joints": JOINTS, "standing": STANDING}
    given = " ".join(f'data-{name}="{escape(json.dumps(value))}"' for name, value in data.items())
    buttons = "".join(f'<button type="button">{what}</button>' for what in ("Add a person", "Remove person"))
    html = f"""<div class="poser" {given}><canvas width="512" height="512" tabindex="0" role="application" aria-label="People"></canvas>
      <div class="brushes">{buttons}<output></output></div></div>"""
    script = (Path(__file__).parent / "pose.js").read_text(encoding="utf-8")
    return gr.HTML([[list(joint) for joint in STANDING]], html_template=html, js_on_load=script, **options)


def build(create: Handlers, tabs: Any) -> None:
    """The tab's components, and which handler answers what."""
    parts: dict[str, Any] = {}
    with gr.Row(elem_classes="columns"):
        with gr.Column(scale=6, min_width=340):
            parts["people"] = editor(elem_id="people")
        with gr.Column(scale=4, min_width=300):
            gr.HTML(words.note(HELP))
            use = gr.Button("Use in Create", variant="primary", elem_id="use-pose")
            parts["said"] = gr.HTML(elem_id="pose-said")
            load = upload_file(label="Load OpenPose JSON, a pose map or a picture", height=170, elem_id="load-pose")
            write = gr.Button("Write OpenPose JSON", size="sm", elem_id="write-pose")
            parts["json"] = gr.Code(
                language="json", label="OpenPose JSON", lines=1, max_lines=8, interactive=False, wrap_lines=False, visible=False
            )
    handlers = _Pose(create, parts, tabs)
    inputs, own = create.parts.inputs, list(parts.values())
    given = [parts["people"], inputs["width"], inputs["height"]]
    first = [inputs[f"control.0.{name}"] for name in ("on", "kind", "ready", "image", *pool())]
    use.click(handlers.use, given, [*own, tabs, create.parts.columns[0], *first], **_QUIET)
    write.click(handlers.write, given, own, **_QUIET)
    load.upload(handlers.load, load, own, **_QUIET)
