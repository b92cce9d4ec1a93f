"""What will be wrong with a request, found before any weight is moved: every mismatch one plain sentence.

The checks are those that drawing makes, asked of the model's outline (`pipelines/outline.py`). On top comes what nobody could refuse but
most would regret: a map for another kind of ControlNet, a size far from the model's own, more memory than there is.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.errors import BadRequest, LimnError, OutOfMemory, unknown_name
from core.request import ControlUnit, RenderRequest
from pipelines import samplers
from pipelines.adapters import Lora, LoraStack
from pipelines.autoencoders import other_scale
from pipelines.checkpoint import Checkpoint, open_checkpoint
from pipelines.controlnet import UNION_TYPES
from pipelines.effects import check_control, check_guidance, check_layer, without_effect
from pipelines.engine import Engine, resolve
from pipelines.family import Family
from pipelines.footprint import Footprint, file_bytes, footprint, free_bytes, shown
from pipelines.guidance import Side, check_weights
from pipelines.memory import SHARES
from pipelines.planning import Stage, loras_of, stages_of, with_defaults, words_of
from pipelines.prompt import parse
from pipelines.residency import Memory
from pipelines.schedules import SCHEDULES
from pipelines.stacks import Stack, together
from pipelines.tuning import check_parts, check_windows, says_tunes

# The names by which cards and files call the kinds.
ALIASES: Mapping[str, str] = {
    "openpose": "pose", "dwpose": "pose", "midas": "depth", "zoe": "depth", "hed": "softedge", "pidinet": "softedge", "pidi": "softedge",
    "mlsd": "lines", "normalbae": "normal", "normals": "normal", "seg": "segmentation",
}  # fmt: skip
# How a model can lie in memory, the fastest first.
_SETTINGS: Mapping[str, Memory] = {
    "storage float8": Memory(storage="float8"),
    "offload model": Memory(offload="model"),
    "offload group": Memory(offload="group"),
}
_LARGER, _SMALLER = 2.25, 0.4  # of the model's own area: beyond, pictures repeat their subject or lose their shape


@dataclass(frozen=True)
class Finding:
    """about: the part of the request ("control 0 (canny)"); error: what drawing would raise, None for a warning."""

    about: str
    text: str
    error: LimnError | None = None

    @property
    def level(self) -> Literal["error", "warning"]:
        """Whether the request can be drawn all the same."""
        return "warning" if self.error is None else "error"


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What lies around a request.

    find_net: the ControlNet of a control, None for a model that reads maps itself; checks: what is to be asked first, by what it is about;
    kinds: every kind of control; loras, wildcards: their folders, given a base model's; fetch: whether models may be downloaded;
    free: bytes of memory, by default the device's; together: pictures drawn at once.
    """

    find_net: Callable[[ControlUnit, Family], Path | None]
    checks: Sequence[tuple[str, Callable[[], None]]] = ()
    kinds: Sequence[str] = ()
    loras: Callable[[Path], Sequence[Path]] = lambda base: ()
    wildcards: Callable[[Path], Sequence[Path]] = lambda base: ()
    fetch: bool = False
    free: int | None = None
    together: Callable[[RenderRequest], int] = lambda request: 1


@dataclass(eq=False)
class _Ward:
    """Where a request is examined, and the findings so far."""

    engine: Engine
    around: Surroundings
    findings: list[Finding] = field(default_factory=list)

    @contextmanager
    def noting(self, about: str) -> Iterator[None]:
        """An error of ours inside becomes a finding."""
        try:
            yield
        except LimnError as error:
            if (about, str(error)) not in [(one.about, one.text) for one in self.findings]:  # said once
                self.findings.append(Finding(about, str(error), error))

    def warn(self, about: str, text: str) -> None:
        """Something to regret."""
        self.findings.append(Finding(about, text))


def examine(request: RenderRequest, engine: Engine, around: Surroundings) -> list[Finding]:
    """Everything that can be told to be wrong with a request, errors and warnings, in the order of its fields; an empty list is health."""
    ward = _Ward(engine, around)
    for about, check in around.checks:
        with ward.noting(about):
            check()
    with ward.noting("sampler"):
        samplers.get(request.sampler)
    with ward.noting("schedule"):
        if request.schedule not in SCHEDULES:
            raise unknown_name("schedule", request.schedule, SCHEDULES)
    family = None
    with ward.noting("model"):
        family = engine.outline(resolve(request.model, fetch=around.fetch))
    if family is None:
        return ward.findings
    if request.vae is not None:
        with ward.noting("vae"):
            family = engine.outline(family.checkpoint.path, resolve(request.vae, fetch=around.fetch))
            doubt = other_scale(family.checkpoint)
            if doubt is not None:
                ward.warn("vae", doubt)
    source = family.checkpoint
    if source.has("text_encoder_3") and not source.has("tokenizer_3"):
        ward.warn("model", f"{str(source.path)!r} holds T5 without its tokenizer, and is drawn without T5: {source.remedy('tokenizer_3')}")
    request = with_defaults(request, family)
    _examine_size(request, family, ward)
    stages = list[Stage]()
    if not any(finding.about in ("sampler", "schedule", "size") for finding in ward.findings if finding.error):
        with ward.noting("sampler and schedule"):
            stages = stages_of(request, family)
    _examine_words(request, family, ward)
    for about, ask in (("guidance", check_guidance), ("clip_skip", check_layer)):
        with ward.noting(about):
            ask(request, family)
    for about, text in without_effect(request, family, [stage.times.steps for stage in stages]):
        ward.warn(about, text)
    steered = stages if request.hires is None or request.hires.with_control else stages[:1]
    nets = [_examine_control(i, unit, family, ward, steered) for i, unit in enumerate(request.controls)]
    if not any(finding.error for finding in ward.findings):
        with ward.noting("controls"):
            stacks = [None if net is None else Stack.of(net.config("")) for net in nets]
            together(request.controls, stacks, [net and net.path for net in nets])
            tuning = [unit for unit, net in zip(request.controls, nets, strict=True) if net is not None and says_tunes(net.config(""))]
            check_windows([(unit.start, unit.end) for unit in tuning])
    if not any(finding.error for finding in ward.findings):
        _examine_memory(request, family, [net for net in nets if net is not None], ward)
    return ward.findings


def _examine_size(request: RenderRequest, family: Family, ward: _Ward) -> None:
    for name, value in (("width", request.width), ("height", request.height)):
        with ward.noting("size"):
            if value % family.side_px:
                raise BadRequest(f"{name} = {value}: this model draws in cells of {family.side_px} pixels; give a multiple")
    if not any(finding.about == "size" for finding in ward.findings):
        with ward.noting("size"):
            family.latent_shape(request.width, request.height)
    own = family.defaults
    if "width" in own and not any(finding.about == "size" for finding in ward.findings):
        share = request.width * request.height / (own["width"] * own["height"])
        if not _SMALLER <= share <= _LARGER:
            remedy = "draw near that and enlarge with hires" if share > 1 else "draw near that and shrink the picture"
            effect = "repeats its subject" if share > 1 else "loses its shapes"
            ward.warn(
                "size",
                f"{request.width} × {request.height} is far from the {own['width']} × {own['height']} that this model was made for, "
                f"where it often {effect}: {remedy}",
            )


def _examine_words(request: RenderRequest, family: Family, ward: _Ward) -> None:
    """The syntax of every picture's prompts, their wildcards, and the LoRAs that they and the request name."""
    with ward.noting("prompt"):
        (wildcards, folders), loras = (find(family.checkpoint.path) for find in (ward.around.wildcards, ward.around.loras)), list[Lora]()
        for words in dict.fromkeys(words_of(request, i, wildcards) for i in range(request.count)):
            check_weights([Side((), part.weight) for part in parse(words.prompt, request.steps).parts])
            parse(words.negative, request.steps, composable=False)
            loras += loras_of(request, words, folders)
        for lora in dict.fromkeys(loras):
            with ward.noting(f"LoRA {lora.path.stem!r}"):
                stack = LoraStack(family.networks())
                stack.use([lora])
                stack.clear()


def _examine_control(index: int, unit: ControlUnit, family: Family, ward: _Ward, stages: Sequence[Stage]) -> Checkpoint | None:
    """The control's network, checked against base and kind; None where there is none to load."""
    with ward.noting(about := f"control {index} ({unit.kind})"):
        path = ward.around.find_net(unit, family)
        net = None if path is None else open_checkpoint(path)
        if net is not None:
            family.check_control(net)
            net.files("")
            _check_kind(unit, net, about, ward)
            if says_tunes(net.config("")):
                check_parts(unit.mode, unit.layer_weights, masked=unit.mask is not None)
        check_control(unit, net, [(stage.width, stage.height) for stage in stages])
        return net
    return None


def _check_kind(unit: ControlUnit, net: Checkpoint, about: str, ward: _Ward) -> None:
    """
    Raises:
        BadRequest: the network's configuration says that it is for other kinds.
    """
    config, where, kinds = net.config(""), str(net.path), ward.around.kinds
    types, stack = config.get("num_control_type"), Stack.of(config)
    if stack is not None:
        if unit.kind not in stack.kinds:
            raise BadRequest(f"{about}: the ControlNet {where!r} says that it is for {' and '.join(stack.kinds)}; give it their maps")
        return
    if isinstance(types, int):
        known = [kind for kind, place in UNION_TYPES.items() if place < types]
        if unit.kind not in known:
            raise BadRequest(f"{about}: the union ControlNet {where!r} is made for {', '.join(known)}; use a ControlNet of that kind")
        return
    if config.get("num_mode"):
        return
    said = config.get("limn_kind")
    if isinstance(said, str) and said != unit.kind:
        raise BadRequest(f"{about}: the ControlNet {where!r} says that it is for {said}; give it a {said} map, or use one for {unit.kind}")
    tags = _kinds_in(_card_tags(net.path), kinds)
    if said is None and tags and unit.kind not in tags:
        ward.warn(about, f"the card of ControlNet {where!r} says {', '.join(sorted(tags))}: a {unit.kind} map will steer it badly")
    elif said is None and not tags:
        hinted = _kinds_in([net.path.stem if net.path.is_file() else net.path.name], kinds)
        if hinted and unit.kind not in hinted:
            ward.warn(
                about,
                f"the ControlNet {where!r} is for {', '.join(sorted(hinted))} going by its name alone, which proves nothing: check it",
            )


def _card_tags(path: Path) -> list[str]:
    """The tags at the head of a model's README.md."""
    import yaml

    card = (path if path.is_dir() else path.parent) / "README.md"
    try:
        head = card.read_text(encoding="utf-8", errors="replace")[:20_000].split("---")
        values: Any = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else {}
    except (OSError, yaml.YAMLError):
        return []
    tags = values.get("tags") if isinstance(values, dict) else None
    return [str(tag) for tag in tags] if isinstance(tags, list) else []


def _kinds_in(names: Sequence[str], kinds: Sequence[str]) -> set[str]:
    """The kinds of control that are words of these names."""
    words = {word for name in names for word in re.split(r"[^a-z0-9]+", name.lower())}
    return {kind for kind in kinds if kind in words} | {kind for alias, kind in ALIASES.items() if alias in words and kind in kinds}


def _examine_memory(request: RenderRequest, family: Family, nets: Sequence[Checkpoint], ward: _Ward) -> None:
    around = ward.around
    free = free_bytes(family.place.device) if around.free is None else around.free
    if free is None:
        return
    controls = [file_bytes(net.files(""), family.place.dtype) for net in {net.path: net for net in nets}.values()]
    loaded = ward.engine.holds(family.checkpoint.path)

    def needed(changed: RenderRequest, together: int, memory: Memory | None = ward.engine.memory) -> Footprint:
        return footprint(family, changed, controls, together=together, loaded=loaded, memory=memory)

    together = around.together(request)
    need = needed(request, together)
    if need.least > free:
        settings = "offload group, storage float8, quantise nf4" if family.place.device.type != "cpu" else "a dtype with fewer bits"
        lacking = OutOfMemory(
            f"the largest network alone takes {shown(need.least)}, {shown(free)} are free on {family.place.device}: "
            f"use a smaller model, or {settings}"
        )
        ward.findings.append(Finding("memory", str(lacking), lacking))
    elif need.total > free:
        ward.warn(
            "memory",
            f"about {shown(need.total)} will be needed ({shown(need.weights)} of weights), {shown(free)} are free on "
            f"{family.place.device}: {_setting_that_fits(request, family, needed, free)}",
        )


def _setting_that_fits(request: RenderRequest, family: Family, needed: Callable[..., Footprint], free: int) -> str:
    """The least change to a request with which it would fit into so many bytes."""
    tiles = request.model_copy(update={"tile_vae": "on"})
    if needed(request, 1).total <= free:
        return "with count 1 it would fit"
    if needed(tiles, 1).total <= free:
        return "with tile_vae on it would fit"
    if request.hires is not None and needed(tiles.model_copy(update={"hires": None}), 1).total <= free:
        return "without hires it would fit"
    if family.place.device.type != "cpu":
        for name, setting in _SETTINGS.items():
            if needed(tiles, 1, setting).total <= free:
                return f"with {name} it would fit"
    for share in SHARES:
        width, height = (int(side * share**0.5) // 64 * 64 or 64 for side in (request.width, request.height))
        if needed(tiles.model_copy(update={"width": width, "height": height, "hires": None}), 1).total <= free:
            return f"at {width} × {height} it would fit"
    if family.place.dtype.itemsize > 2 and family.place.device.type != "cpu":
        return "dtype float16 takes half"
    return "networks will have to wait on the CPU for their turn, which is slow; fewer controls take less"
