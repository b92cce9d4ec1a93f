"""docs/controls.md, written from the kinds themselves: what each is, its settings, its measure, its published networks, and one picture of
all.

    python -m controls.documentation [--picture docs/images/scene.png]

Beside the picture may lie finished maps, as scene-depth.png; they are shown for kinds whose network is not installed.
"""

import argparse
import inspect
from pathlib import Path
from typing import Any, get_args

import controls
from core.control import Control, Image
from core.files import publish
from core.images import decode, encode_png
from core.sheet import contact_sheet

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLUMNS, CELL_PX = 5, 224
EXAMPLES: dict[str, dict[str, Any]] = {  # settings that show more on the sheet than the default ones
    "mask": {"left": 0.04, "top": 0.04, "right": 0.84, "bottom": 0.96},
    "tile": {"shrink": 8},
}

HEAD = """# Controls

A control image says where things are; the prompt says what they are. Limn makes the image that a ControlNet reads (the *map*) from a
picture, or takes a finished one, notices the usual mistakes, and measures afterwards how well the drawn picture obeys.

This page is written by `make docs` from the code in `controls/`, one file a kind. A file that is added there appears here, on the command
line, in the page's forms and in the tests.

![Every kind of control on one picture](images/controls.png)

```
limn extract canny photo.jpg low=80 high=160        # the map alone
limn render "a fox" --control canny=photo.jpg,low=80 --control depth=depth.png,ready
```

`KIND=FILE` names the picture; with `ready` it is the finished map. Further keys: `weight`, `start`, `end`, `mode`, `mask`, `model`,
`resize` (`crop`, the default; `just`, which stretches; `fill`, which leaves black margins), `processor_px` and the kind's own settings.

**Size.** A picture is first brought to the size that is drawn and then extracted, so that lines are one pixel wide there (pixel-perfect).
`processor_px=512` extracts at a shorter side of 512 instead and resizes the map. Line maps stay black and white at any size, labels and
colours that mean something are never mixed, everything else is averaged or interpolated; nothing shifts by more than half a pixel.

**Mistakes.** Limn warns about a finished map that is extracted again, a picture passed as a map, black lines on white, depth with its far
end bright, an empty map, a region mask of one colour, joints beside the canvas, and a finished map whose proportions differ from the
picture's by more than 1%. The warning names the remedy, and the picture's record keeps it. `python benchmarks/mistakes.py` measures how
often these checks err.

**Fidelity.** After each picture the same condition is extracted from it and held against the map: a score from 0 to 1 beside the metric in
its own unit, in the record and on the page. With a region mask only the region counts, and with a `processor_px` the picture is read at
that resolution too. Networks are asked if they are at hand; on request they are loaded:

```
limn score picture.png                                        # against the controls of its own record
limn score photo.jpg --control canny=map.png,ready --overlay over.png
limn render "a fox" --control canny=photo.jpg --best-of 4     # the most faithful of four is kept
limn render "a fox" --control canny=photo.jpg --min-fidelity 0.7 --tries 8
limn evaluate control --model DIR --controls canny,depth --pictures FOLDER
```

What was tried and not kept lies in `rejected/`. [How faithful the embedded model is](#how-faithful-the-embedded-model-is) stands below.

**Networks.** Kinds that say *network* need one to read a picture. Toyland's are embedded; for other models `estimator=` takes any hub id,
folder of transformers' or (depth, pose) `.onnx` file, and published ones are the default. Nothing is downloaded where `HF_HUB_OFFLINE=1`
is set.

**Speed.** On one core every extractor without a network takes under 25 ms at 512² and 100 ms at 1024², toyland's networks under 60 ms.
`python benchmarks/controls.py` prints it, and holds ours against controlnet_aux where it has the same without weights, on the same array
(0.0.10, 512²): canny 1.3 ms against 1.5, line art 6 against 14, shuffle 2 against 4; canny's and line art's pixels are the same.

**Other files.** `pose` reads OpenPose's JSON (COCO-18 and BODY_25, hands and faces), `depth` reads `.npy` and 16-bit PNG, whose numbers are
nearness, or with `values=distance` metres and the like. `segmentation` wants a network for ADE20K's 150 classes or COCO's 133.
"""


MEASURED = """## How faithful the embedded model is

{fidelity}
![Fidelity against weight and against the end of the window, with 95% bands; dotted: the ceilings](images/fidelity.png)

The curves are of fewer pictures than the table. Most of a control's effect comes in the first half of the steps, and with half its weight.

`--best-of 4` on held-out prompts, the best by the same measure; the gain is paired by prompt:

{best}
An overlay of `limn score`, of a picture that was asked to obey two controls that contradict each other:

![Wanted, got and agreement for canny and depth](images/overlay.png)

`make fidelity` measures all of this again: {commands}, then this page.
"""
COMMANDS = "`limn evaluate control --count 200` and `limn evaluate control --count 20 --seeds 4 --sweep 0`"


def measured() -> str:
    """What `evaluation.documentation` has left of its measurements."""
    fidelity, best = ((DOCS / "measured" / name).read_text(encoding="utf-8") for name in ("fidelity.md", "best-of.md"))
    return MEASURED.format(fidelity=fidelity, best=best, commands=COMMANDS)


def page() -> str:
    """The whole page as Markdown; equal kinds give equal text."""
    kinds = [controls.get(name) for name in controls.names()]
    rows = [f"| [{kind.name}](#{kind.name}) | {_what(kind)} | {_needs(kind)} | {_measure(kind)} |" for kind in kinds]
    table = "\n".join(["| kind | map | needs | measured by |", "|---|---|---|---|", *rows])
    return "\n".join([HEAD, table, "", measured(), *(section(kind) for kind in kinds)])


def section(kind: Control) -> str:
    """One kind: what it is, what its score means, its settings, its published networks."""
    lines = [f"## {kind.name}", "", f"{kind.summary}.", "", f"Score: {_sentence(kind.compare_maps.__doc__)}", ""]
    if kind.params.model_fields:
        lines += ["| setting | default | range | meaning |", "|---|---|---|---|"]
        lines += [_row(name, field) for name, field in kind.params.model_fields.items()] + [""]
    for family, weights in sorted(kind.weights.items()):
        pinned = f" at `{weights.revision[:12]}`" if weights.revision else ""
        lines.append(f"- {family}: [{weights.repo}](https://huggingface.co/{weights.repo}){pinned}")
    return "\n".join(lines).rstrip() + "\n"


def sheet(picture_HWC: Image, finished: dict[str, Image]) -> Image:
    """The picture and every kind's map of it; `finished` has maps for kinds that cannot be extracted here."""
    strips, captions = [[picture_HWC]], ["the picture"]
    for name in controls.names():
        kind = controls.get(name)
        params, source_HWC = kind.parse_params(EXAMPLES.get(name, {})), picture_HWC
        if name == "inpaint":
            source_HWC = _with_hole(picture_HWC)
        if name == "normal" and not kind.available(params) and "depth" in finished:
            params, source_HWC = kind.parse_params({"source": "depth"}), finished["depth"]
        if kind.available(params):
            strips.append([kind.extract(source_HWC, params)])
        elif name in finished:
            strips.append([finished[name]])
        else:
            continue
        captions.append(name)
    return contact_sheet(strips, captions, columns=COLUMNS, cell_px=CELL_PX)


def _with_hole(picture_HWC: Image) -> Image:
    """The picture with a white box painted into it."""
    height, width = picture_HWC.shape[:2]
    marked_HWC = picture_HWC.copy()
    marked_HWC[height * 5 // 9 : height * 8 // 9, width // 20 : width * 3 // 8] = 255
    return marked_HWC


def _what(kind: Control) -> str:
    return kind.summary.partition(": ")[2] or kind.summary


def _needs(kind: Control) -> str:
    return "network" if "estimator" in kind.params.model_fields and kind.name != "mask" else "–"


def _measure(kind: Control) -> str:
    return _sentence(kind.compare_maps.__doc__).partition(":")[0].partition(";")[0].rstrip(".")


def _sentence(text: str | None) -> str:
    """A docstring's first paragraph on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split()).replace("`", "")


def _row(name: str, field: Any) -> str:
    default = "–" if field.default is None else f"`{str(field.default).lower()}`" if field.default != "" else "–"
    return f"| `{name}` | {default} | {_range(field)} | {field.description} |"


def _range(field: Any) -> str:
    """The values a setting takes, in words."""
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(f"`{choice}`" for choice in choices)
    if field.annotation is bool:
        return "`true`, `false`"
    limits = {name: getattr(item, name) for item in field.metadata for name in ("ge", "le", "lt", "max_length") if hasattr(item, name)}
    if "ge" in limits and ("le" in limits or "lt" in limits):
        return f"{limits['ge']:g} to {limits['le']:g}" if "le" in limits else f"{limits['ge']:g} and up"
    return "text"


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes docs/controls.md and its picture.")
    parser.add_argument("--picture", type=Path, default=DOCS / "images" / "scene.png")
    picture: Path = parser.parse_args().picture
    finished = {path.stem.partition("-")[2]: decode(path) for path in sorted(picture.parent.glob(f"{picture.stem}-*.png"))}
    publish(DOCS / "images" / "controls.png", encode_png(sheet(decode(picture), finished)))
    publish(DOCS / "controls.md", page().encode())


if __name__ == "__main__":
    main()
