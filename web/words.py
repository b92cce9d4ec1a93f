"""What the page says, in plain words."""

import datetime
import re
from collections.abc import Mapping, Sequence
from html import escape

import controls
from core.control import Score
from core.provenance import Fidelity, Record
from web.service import Drawing, Finished, News, Waiting

_GRADES = ((0.9, "very closely"), (0.7, "closely"), (0.5, "roughly"), (0.25, "loosely"))


def progress(news: News) -> str:
    """Where a job is."""
    match news:
        case Waiting(loading=True):
            return "Loading the model. The picture comes right after."
        case Waiting(ahead=0):
            return "Preparing."
        case Waiting(ahead=ahead):
            return f"Waiting: {ahead} {'picture' if ahead == 1 else 'pictures'} before yours."
        case Drawing(done=done, steps=steps, seconds_left=left):
            return f"Step {done} of {steps}" + (f", about {duration(left)} left." if left is not None else ".")
        case Finished(seconds=seconds, pictures=pictures):
            return f"Done in {duration(seconds)}, seed {pictures[-1].record.seed}."


def tokens(used: int, room: int) -> str:
    """How long a prompt is."""
    return f"{used} of {room} tokens"


def fidelity(kind: str, score: Score | Fidelity | None) -> str:
    """How well a picture follows its control."""
    if score is None and not controls.get(kind).available():
        return f"How well it follows the {kind} map cannot be measured: no {kind} estimator is installed."
    if score is None:
        return f"How well it follows the {kind} map cannot be measured: the map shows nothing to compare with."
    grade = next((f"Follows the {kind} map {word}" for limit, word in _GRADES if score.value >= limit), f"Hardly follows the {kind} map")
    raw = f", {score.raw:.1f} {score.unit}" if score.unit else ""
    return f"{grade}: {score.value:.2f} of 1 ({score.metric}{raw})."


def details(record: Record, time: float) -> str:
    """A picture's origin as HTML: the prompt, then a table."""
    request = record.request
    rows = {
        "Drawn": datetime.datetime.fromtimestamp(time).strftime("%d %B %Y, %H:%M"),
        "Model": request.model,
        "Seed": str(record.seed),
        "Size": f"{request.width} × {request.height}",
        "Steps": f"{request.steps}, {request.sampler}, {request.schedule}",
        "Guidance": f"{request.guidance_scale:g}",
    }
    if request.negative_prompt:
        rows["Not"] = record.negative_prompt or request.negative_prompt
    for unit, control in zip(request.controls, record.controls, strict=True):
        measured = "" if control.fidelity is None else f", fidelity {control.fidelity.value:.2f}"
        rows[unit.kind.capitalize()] = f"weight {unit.weight:g}, {unit.start:.0%} to {unit.end:.0%}{measured}"
    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f'<p class="said">{escape(record.prompt or request.prompt) or "<i>no prompt</i>"}</p><table class="details">{table}</table>'


def duration(seconds: float) -> str:
    """`0.8 s`, `42 s`, `3 min 20 s`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def plain(message: str, names: Mapping[str, str]) -> str:
    """A message as one sentence for the page: `names` replaces what only the server knows (its paths) by what the visitor knows."""
    if names:  # all at once: what has been put in place of one is not another one
        known = re.compile("|".join(re.escape(ours) for ours in sorted(names, key=len, reverse=True)))
        message = known.sub(lambda found: names[found[0]], message)
    message = " ".join(message.split())
    return f"{message[:1].upper()}{message[1:]}" + ("" if message.endswith((".", "!", "?")) else ".")


def note(text: str, *, problem: bool = False) -> str:
    """A sentence as HTML that screen readers announce; nothing for no text."""
    if not text:
        return ""
    return f'<p class="{"problem" if problem else "note"}" role="{"alert" if problem else "status"}">{escape(text)}</p>'


def findings(found: Sequence[tuple[str, bool]]) -> str:
    """The doctor's sentences, each with whether it is an error, as HTML that screen readers announce when they have time."""
    items = "".join(f'<li class="{"error" if error else "warning"}">{escape(text)}</li>' for text, error in found)
    return f'<ul class="findings" role="status">{items}</ul>' if items else ""


def share(text: str, done: float, total: float) -> str:
    """A sentence and how far it has come, as HTML."""
    return f'<p class="note" role="status">{escape(text)}</p><progress max="{total:g}" value="{done:.2f}" aria-label="Progress"></progress>'


def bar(news: News) -> str:
    """A job's progress as HTML."""
    text = f'<p class="note" role="status">{escape(progress(news))}</p>'
    match news:
        case Drawing(done=done, steps=steps):
            return f'{text}<progress max="{steps}" value="{done}" aria-label="Progress"></progress>'
        case Waiting():
            return f'{text}<progress aria-label="Waiting"></progress>'
        case _:
            return text
