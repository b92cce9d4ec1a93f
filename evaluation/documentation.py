"""The measured part of docs/controls.md, for the embedded model: table and plot, best of four, and an overlay.

    python -m evaluation.documentation [--count 200] [--workers N]

`make fidelity` does, and writes the page again. Stopped and started again, it goes on. The table also goes beside the model, where
`limn score` finds floor and ceiling.
"""

import argparse
from pathlib import Path

from core import terminal
from core.files import publish
from core.images import encode_png
from core.request import ControlUnit, RenderRequest
from evaluation.bench import Settings
from evaluation.cases import Scenes
from evaluation.known import beside
from evaluation.report import Report
from evaluation.run import evaluate
from evaluation.score import agreement, score_picture
from renderer import ROOT, Renderer

DOCS, OUT, EXAMPLES = ROOT / "docs", ROOT / "outputs" / "fidelity", ROOT / "examples"
BEST_OF, PROMPTS = 4, 20
PROMPT, SEED = "a person in a red shirt and blue pants on sand by day", 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the measured part of docs/controls.md.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int)
    args = parser.parse_args()
    report = _measured(Settings(), args.count, OUT / "control", args.workers)
    publish(DOCS / "measured" / "fidelity.md", report.as_markdown().encode())
    publish(DOCS / "images" / "fidelity.png", (OUT / "control" / "fidelity.png").read_bytes())
    publish(beside("toyland"), report.as_json().encode())
    best = _measured(Settings(seeds=BEST_OF, sweep=0), PROMPTS, OUT / "best", args.workers)
    publish(DOCS / "measured" / "best-of.md", best.best_as_markdown().encode())
    overlay(DOCS / "images" / "overlay.png")


def overlay(path: Path) -> None:
    """Draws a picture with two controls that contradict each other and publishes how far it obeys either."""
    units = (ControlUnit(kind="canny", image=EXAMPLES / "runner.png"), ControlUnit(kind="depth", image=EXAMPLES / "depth.png", ready=True))
    (picture,) = Renderer.open("toyland").render(RenderRequest(prompt=PROMPT, seed=SEED, controls=units))
    publish(path, encode_png(agreement(score_picture(picture.save(OUT), units))))


def _measured(settings: Settings, count: int, out: Path, workers: int | None) -> Report:
    with terminal.progress(out.name, count) as done:
        return evaluate(settings, Scenes(count), out, workers=workers, on_progress=lambda measured, _: done(measured))


if __name__ == "__main__":
    main()
