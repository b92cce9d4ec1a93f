"""From a request to plans for the loop: texts encoded, noise levels chosen, the way of guidance that the family knows.

A request is drawn in one stage, or, with hires, in two.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from core.errors import BadRequest
from core.provenance import ROUNDED
from core.request import MAX_SIZE_PX, ControlUnit, RenderRequest
from core.stack import stacked
from pipelines import samplers
from pipelines.adapters import Lora
from pipelines.denoise import Plan
from pipelines.family import Drawing, Family, Hint, PreparedControl, Text
from pipelines.guidance import Side, check_weights
from pipelines.lora_file import find_lora
from pipelines.prompt import Part, parse
from pipelines.samplers import Sampler
from pipelines.schedules import Times, make_times
from pipelines.skipping import idle_skip
from pipelines.stacks import Stack, together
from pipelines.steering import Steering, idle_window, united
from pipelines.tuning import Tunes, check_windows
from pipelines.wildcards import expand


@dataclass(frozen=True)
class Words:
    """A picture's prompts, every choice made."""

    prompt: str
    negative: str


@dataclass(frozen=True, eq=False)
class Stage:
    """One way from noise to picture: its size in pixels, its noise levels, and the controls that act on it.

    before: the steps of the stage before it, from which the prompt's schedules count on.
    """

    width: int
    height: int
    sampler: Sampler
    times: Times
    controls: tuple[Steering, ...] = ()
    before: int = 0


@dataclass(frozen=True, eq=False)
class Given:
    """A control of the request with its loaded network and its map. mask_HW: uint8, 255 where it acts; None for everywhere."""

    unit: ControlUnit
    net: Any
    hint: Hint
    sha256: str
    mask_HW: NDArray[np.uint8] | None = None


def with_controls(stage: Stage, family: Family, given: Sequence[Given]) -> Stage:
    """The stage with its controls; one map through one network is embedded once, however often it is used, and maps that one call of a
    network can read are given to it together.

    Raises:
        Mismatch: a control has no places to mask, or other levels than it has weights, or lacks maps that its network reads beside its own;
            or two would change the base network at once.
    """
    prepared: dict[tuple[int, str, str], PreparedControl] = {}
    steerings = []
    for one in _as_one(given):
        unit, key = one.unit, (id(one.net), one.sha256, one.unit.kind)
        if key not in prepared:
            prepared[key] = family.prepare(one.net, one.hint)
        mask = None if one.mask_HW is None else torch.from_numpy(one.mask_HW).float() / 255.0
        steerings.append(Steering(prepared[key], unit.weight, unit.start, unit.end, unit.mode, mask, unit.layer_weights))
    check_windows([(one.start, one.end) for one in steerings if isinstance(one.control, Tunes)])
    return replace(stage, controls=united(steerings))


def _as_one(given: Sequence[Given]) -> list[Given]:
    """The controls, with those made one whose network reads their maps together."""
    stacks = [Stack.of(getattr(getattr(one.net, "net", None), "config", {})) for one in given]
    found = []
    for places in together([one.unit for one in given], stacks, [id(one.net) for one in given]):
        mine, stack = [given[place] for place in places], stacks[places[0]]
        if stack is None:
            found += mine
            continue
        map_HWC = stacked([one.hint.map_HWC for one in mine], stack.channels)
        hint = Hint(map_HWC, "+".join(stack.kinds))
        found.append(replace(mine[0], hint=hint, sha256="+".join(one.sha256 for one in mine)))
    return found


def with_defaults(request: RenderRequest, family: Family) -> RenderRequest:
    """The request with the family's own defaults in place of what it leaves out."""
    missing = {name: value for name, value in family.defaults.items() if name not in request.model_fields_set}
    return request.model_copy(update=missing) if missing else request


def words_of(request: RenderRequest, index: int, wildcards: Sequence[Path]) -> Words:
    """The prompts of the request's picture `index`, wildcards and choices drawn from its seed.

    Raises:
        BadRequest: a wildcard is unknown or empty.
    """
    seed, variation = request.seeds(index)
    drawn_with = seed if variation is None else variation
    return Words(
        expand(request.prompt, drawn_with, *wildcards), expand(request.negative_prompt, drawn_with, *wildcards, stream="negative_prompt")
    )


def loras_of(request: RenderRequest, words: Words, folders: Sequence[Path]) -> tuple[Lora, ...]:
    """The LoRAs of the request and of a prompt.

    Raises:
        BadRequest: a LoRA cannot be found, or its tag is malformed.
    """
    asked = [Lora(find_lora(unit.name, *folders), unit.weight, _or(unit.text_weight, unit.weight)) for unit in request.loras]
    named = [Lora(find_lora(tag.name, *folders), tag.weight, tag.text_weight) for tag in parse(words.prompt, 1).loras]
    return (*asked, *named)


def embeddings_of(words: Words, steps: int, family: Family) -> list[Path]:
    """The files of the textual inversions that a picture's prompts name, where its family has any."""
    inversions = getattr(family, "inversions", None)
    if inversions is None:
        return []
    parts = [*parse(words.prompt, steps).parts, *parse(words.negative, steps, composable=False).parts]
    texts = [wording.text for part in parts for _, wording in part.wordings]
    return [inversion.path for text in texts for inversion in inversions.used(text)]


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def stages_of(request: RenderRequest, family: Family) -> list[Stage]:
    """The request's stages, still without controls.

    Raises:
        BadRequest: an unknown sampler or schedule, settings that they do not have, or a second pass over the limit of size.
        Mismatch: a schedule that the family's path cannot take.
    """
    sampler = choose_sampler(request)
    times = _times(request, family, sampler, (request.width, request.height), request.steps)
    if request.init_image is not None:
        times = times.tail(request.strength)
    if request.inversion is not None:
        if request.sampler not in samplers.INVERTIBLE:
            raise BadRequest(f"sampler {request.sampler!r} cannot be inverted: use one of {', '.join(samplers.INVERTIBLE)}")
        if request.eta:
            raise BadRequest(f"eta = {request.eta:g}: noise that a sampler adds on its way cannot be walked back; set eta to 0")
        times = times.ending_on_first()
    stages = [Stage(request.width, request.height, sampler, times)]
    if request.hires is not None:
        width, height = (_enlarged(side, request.hires.scale, family.side_px) for side in (request.width, request.height))
        try:
            family.latent_shape(width, height)
        except BadRequest as error:
            raise BadRequest(f"hires.scale = {request.hires.scale:g}: {error}") from None
        second = _times(request, family, sampler, (width, height), request.hires.steps or request.steps)
        stages.append(Stage(width, height, sampler, second.tail(request.hires.strength), before=times.steps))
    return stages


def choose_sampler(request: RenderRequest) -> Sampler:
    """The request's sampler with its settings.

    Raises:
        BadRequest: it is unknown, or has no eta.
    """
    sampler = samplers.get(request.sampler)
    if request.eta is None:
        return sampler
    if "eta" not in inspect.signature(sampler.run).parameters:
        able = [name for name, one in samplers.SAMPLERS.items() if "eta" in inspect.signature(one.run).parameters]
        raise BadRequest(f"eta = {request.eta:g}: {request.sampler} has no such setting; leave it out, or use {', '.join(able)}")
    run: Any = sampler.run  # whose head is shared; what it takes besides is its own
    return replace(sampler, run=partial(run, eta=request.eta))


def _enlarged(side: int, scale: float, side_px: int) -> int:
    cell = max(8, side_px)
    larger = round(side * scale / cell) * cell
    if larger > MAX_SIZE_PX:
        raise BadRequest(f"hires.scale = {scale:g}: {side} pixels become {larger}, over the limit of {MAX_SIZE_PX}; give a smaller scale")
    return larger


def _times(request: RenderRequest, family: Family, sampler: Sampler, size: tuple[int, int], steps: int) -> Times:
    shift = family.shift(*size)
    return make_times(
        family.path,
        request.schedule,
        steps,
        sampler.grid,
        steps_offset=family.steps_offset,
        end_on_first=family.end_on_first,
        shift=shift.factor if request.shift is None else request.shift,
        terminal=shift.terminal,
    )


def make_plan(request: RenderRequest, family: Family, stage: Stage, words: Words, notes: list[str]) -> Plan:
    """What the loop needs for one stage; what the user should know is added to `notes`.

    Raises:
        BadRequest: the prompt's syntax is wrong, or guidance is asked for in a way that the model does not know.
    """
    scale = _classifier_free_scale(request, family, notes)
    if family.rounding:
        _add(notes, f"{ROUNDED}{', '.join(family.rounding)}")
    windows = [("a control", one.start, one.end) for one in stage.controls if not one.silent]
    for what, start, end in (*windows, ("guidance", request.guidance_start, request.guidance_end)):
        if (idle := idle_window(start, end, stage.times.steps)) is not None:
            _add(notes, f"{what} {idle}")
    if request.skip_layers is not None and (sentence := idle_skip(request.skip_layers, stage.times.steps)) is not None:
        _add(notes, sentence)
    steps = max(stage.times.steps, 1)
    prompt = parse(words.prompt, steps, before=stage.before)
    negative = parse(words.negative, steps, composable=False, before=stage.before)
    drawing = Drawing(stage.width, stage.height, request.guidance_scale)
    sides = tuple(_side(request, family, part, drawing, notes) for part in prompt.parts)
    check_weights(sides)
    unwanted = replace(drawing, negative=True)
    return Plan(
        sampler=stage.sampler,
        times=stage.times,
        positive=sides,
        negative=_side(request, family, negative.parts[0], unwanted, notes) if scale != 1.0 else None,
        guidance_scale=scale,
        controls=stage.controls,
        guidance_start=request.guidance_start,
        guidance_end=request.guidance_end,
        guidance_rescale=request.guidance_rescale,
        pag_scale=request.pag_scale,
        skip=request.skip_layers,
        share_start=True,
    )


def make_inverting_plan(request: RenderRequest, family: Family, stage: Stage) -> Plan:
    """What the loop needs to walk the init_image back: its own prompt, unguided, without controls."""
    assert request.inversion is not None
    plain = {"guidance_scale": 1.0, "true_cfg_scale": 1.0, "pag_scale": 0.0, "skip_layers": None}
    return make_plan(request.model_copy(update=plain), family, replace(stage, controls=()), Words(request.inversion.prompt, ""), [])


def _classifier_free_scale(request: RenderRequest, family: Family, notes: list[str]) -> float:
    """The scale of the second forward: models that are told their guidance have it from `true_cfg_scale` alone."""
    if family.guidance == "classifier_free":
        if request.true_cfg_scale != 1.0:
            raise BadRequest(
                f"true_cfg_scale = {request.true_cfg_scale:g}: {family.title} is guided by guidance_scale; leave true_cfg_scale at 1"
            )
        return request.guidance_scale
    if family.guidance == "none" and request.guidance_scale != 1.0:
        _add(notes, f"this model takes no guidance: guidance_scale {request.guidance_scale:g} has no effect (true_cfg_scale would)")
    return request.true_cfg_scale


def _side(request: RenderRequest, family: Family, part: Part, drawing: Drawing, notes: list[str]) -> Side:
    """One side of an AND, encoded; equal words are encoded once."""
    texts: list[tuple[int, Text]] = []
    for end, wording in part.wordings:
        text = family.encode_prompt(wording, request.clip_skip)
        if text.dropped:
            name = "negative prompt" if drawing.negative else "prompt"
            _add(notes, f"the {name} is longer than the text encoder takes; dropped: {text.dropped!r}")
        texts.append((end, family.bind(text, drawing)))
    return Side(tuple(texts), part.weight)


def _add(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)
