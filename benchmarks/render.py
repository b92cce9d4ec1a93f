"""Limn against diffusers' own pipelines on the same weights: seconds a picture, interleaved, as a ratio with its spread.

    python benchmarks/render.py [--model DIR --controlnet DIR] [--steps 20] [--size 128] [--repeats 7]

Both sides go from a prompt and a finished control map to a picture on the host, warm, with the same sampler and seed, one after the other
in one process; the side that goes first alternates. A ratio above 1 means that Limn is faster. Both draw the same picture, or it is said.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, where a module is called as our package is

from core.request import ControlUnit, RenderRequest
from pipelines.engine import TOYLAND
from renderer import Renderer

PROMPT, GUIDANCE = "a red sphere left of a blue cube on grass at sunset", 4.0
# name: (controls, where they end, pictures)
CASES = {
    "no control": (0, 1.0, 1),
    "one control": (1, 1.0, 1),
    "one control, first half": (1, 0.5, 1),
    "two controls": (2, 1.0, 1),
    "one control, 4 pictures": (1, 1.0, 4),
}


def limn(renderer: Renderer, net: Path, image: Path, case: tuple[int, float, int], args: argparse.Namespace) -> Callable[[], Any]:
    """One render through our door, the record included."""
    count, end, pictures = case
    unit = ControlUnit(kind="depth", image=image, ready=True, model=str(net), end=end)
    request = RenderRequest(
        prompt=PROMPT,
        width=args.size,
        height=args.size,
        steps=args.steps,
        guidance_scale=GUIDANCE,
        seed=7,
        count=pictures,
        controls=(unit,) * count,
    )
    return lambda: [np.asarray(picture.image) for picture in renderer.render(request)]


def diffusers_pipeline(model: Path, net: Path, image: Path, case: tuple[int, float, int], args: argparse.Namespace) -> Callable[[], Any]:
    """The documented script of the library's model card."""
    import diffusers
    import torch

    count, end, pictures = case
    dtype = torch.float32 if args.device == "cpu" else torch.float16
    options: dict[str, Any] = {"safety_checker": None, "requires_safety_checker": False, "dtype": dtype}
    call: dict[str, Any] = {}
    if count:
        nets = [diffusers.ControlNetModel.from_pretrained(net, dtype=dtype) for _ in range(count)]
        maps = [PIL.Image.open(image).convert("RGB") for _ in range(count)]
        options["controlnet"] = nets if count > 1 else nets[0]
        call = {"image": maps if count > 1 else maps[0], "control_guidance_end": [end] * count if count > 1 else end}
    kind = diffusers.StableDiffusionControlNetPipeline if count else diffusers.StableDiffusionPipeline
    pipe = kind.from_pretrained(model, **options).to(args.device)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
    pipe.set_progress_bar_config(disable=True)

    def render() -> list[Any]:
        result = pipe(
            PROMPT,
            width=args.size,
            height=args.size,
            num_inference_steps=args.steps,
            guidance_scale=GUIDANCE,
            num_images_per_prompt=pictures,
            generator=[torch.Generator("cpu").manual_seed(7 + i) for i in range(pictures)],
            **call,
        )
        return [np.asarray(picture) for picture in result.images]

    return render


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Medians in seconds, and the median, least and greatest ratio of neighbouring runs."""
    differences = [np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(ours(), theirs(), strict=True)]  # and both are warm
    pairs = []
    for i in range(repeats):
        if i % 2:
            second = timed(theirs)
            pairs.append((timed(ours), second))
        else:
            pairs.append((timed(ours), timed(theirs)))
    ratios = [second / first for first, second in pairs]
    return {
        "limn_s": statistics.median(first for first, _ in pairs),
        "diffusers_s": statistics.median(second for _, second in pairs),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "largest_pixel_difference": int(max(differences)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Limn against diffusers on the same weights.")
    parser.add_argument("--model", type=Path, default=TOYLAND / "base", help="diffusers folder")
    parser.add_argument("--controlnet", type=Path, default=TOYLAND / "controlnet-depth", help="ControlNet folder")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--case", choices=list(CASES), action="append", help="default: all")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each case")
    args = parser.parse_args()
    if args.repeats < 5:
        parser.error("--repeats: give at least 5, a ratio of fewer says little")

    start = time.perf_counter()
    renderer = Renderer.open(str(args.model))
    loading = time.perf_counter() - start
    args.device = str(renderer.engine.place.device)
    if not args.json:
        print(f"{args.model} on {args.device}: loaded in {loading:.2f} s (imports included); {args.steps} steps, {args.size}x{args.size}")
        print(f"{'':26}{'limn':>10}{'diffusers':>12}{'ratio':>8}   least … greatest")
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "map.png"
        ramp_HW = np.tile(np.linspace(0, 255, args.size).astype(np.uint8), (args.size, 1))
        PIL.Image.fromarray(np.stack([ramp_HW] * 3, axis=-1)).save(image)
        for name in args.case or CASES:
            case = CASES[name]
            ours = limn(renderer, args.controlnet, image, case, args)
            found = compare(ours, diffusers_pipeline(args.model, args.controlnet, image, case, args), args.repeats)
            if args.json:
                print(json.dumps({"case": name, "device": args.device, **found}))
            else:
                line = f"{name:26}{found['limn_s']:>8.3f} s{found['diffusers_s']:>10.3f} s{found['ratio']:>8.2f}"
                note = "" if found["largest_pixel_difference"] <= 1 else f"   pictures differ by {found['largest_pixel_difference']:.0f}"
                print(f"{line}   {found['least']:.2f} … {found['greatest']:.2f}{note}")


if __name__ == "__main__":
    main()
