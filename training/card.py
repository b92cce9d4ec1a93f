"""A model card beside the weights: what they were trained on and how, figures and pictures, so that the folder can be published."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipelines.engine import is_hub_id
from training.gallery import Bounds, read_bounds

SHEET = "samples.png"


def write_card(folder: Path, name: str, facts: Mapping[str, Any], config: Mapping[str, Any], out: Path) -> None:
    """Writes `README.md` into a finished folder, and the newest sheet of samples. out: of the run, with its monitor.jsonl and grids.

    facts: base, condition, kind, pairs, steps; what was measured or drawn after those steps is of other weights. Of paths only the last
    part is published.
    """
    last = int(facts["steps"])
    sheets = [path for path in sorted((out / "grids").glob("step-*.png")) if path.stem <= f"step-{last:08d}"]
    if sheets:
        shutil.copyfile(sheets[-1], folder / SHEET)
    measured = [row for row in _measured(out / "monitor.jsonl") if row["step"] <= last]
    asked = " ".join(f"--control {kind}=map.png,ready,model=FOLDER" for kind in str(facts["kind"]).split("+"))
    tags = ", ".join(json.dumps(condition) for condition in str(facts["condition"]).split("+"))
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        f"tags: [controlnet, limn, {tags}]",
        *([f"base_model: {base}"] if (base := _of_hub(str(facts["base"]))) else []),
        "---",
        "",
        f"# {name}",
        "",
        f"A ControlNet for {_short(facts['base'])}, trained with Limn on {facts['pairs']} pairs for {facts['steps']} steps; "
        f"its condition is {facts['condition']}.",
        "",
        "```",
        f"limn render --model {_short(facts['base'])} {asked} --prompt '…'",
        "```",
        "",
        "`FOLDER` is where this file lies, or the name on the hub that it is read under.",
        "",
        *_figures(measured, read_bounds(out)),
        *([f"![control, picture, truth]({SHEET})", ""] if sheets else []),
        "## Settings",
        "",
        "```yaml",
        yaml.safe_dump(_without_paths(dict(config)), sort_keys=False, allow_unicode=True).rstrip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _figures(measured: list[dict[str, Any]], bounds: Bounds | None) -> list[str]:
    """What the monitor measured, as a table of at most eight rows, and what fidelity lies between."""
    if not measured:
        return []
    step = max(1, -(-len(measured) // 8))
    chosen = measured[::-1][::step][::-1]
    rows = ["## Figures", "", "| step | paired loss gap | ± | against other conditions | fidelity (95%) |", "|---|---|---|---|---|"]
    for row in chosen:
        interval = "" if row.get("interval") is None else " ({:.3f} to {:.3f})".format(*row["interval"])
        fidelity = "" if row.get("fidelity") is None else f"{row['fidelity']:.3f}{interval}"
        shuffled = "" if row.get("gap_shuffled") is None else f"{row['gap_shuffled']:.5f}"
        rows.append(f"| {row['step']} | {row['gap']:.5f} | {row['error']:.5f} | {shuffled} | {fidelity} |")
    return [
        *rows,
        "",
        "On held-out pairs: how much less the denoiser errs with the condition than without it, and how well pictures obey"
        + (f": {bounds}." if bounds else "."),
        "",
    ]


def _measured(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def _of_hub(base: str) -> str:
    """The hub's name of a model, without its revision; empty for others."""
    name = base.partition("@")[0]
    return name if is_hub_id(name) and not Path(base).exists() else ""


def _short(value: object) -> str:
    """The last part of a path; anything else as it is."""
    text = str(value)
    return Path(text).name if Path(text).is_absolute() else text


def _without_paths(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_paths(value) if isinstance(value, dict) else _short(value) if isinstance(value, str) else value
        for name, value in values.items()
    }
