"""`limn train CONFIG [key=value …]`: from a YAML file to a ControlNet folder."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from pydantic import ValidationError

from core.errors import BadModel, BadRequest, unknown_name
from core.files import publish
from core.lock import check_free, held
from core.request import explain
from pipelines.checkpoint import open_checkpoint
from pipelines.edm import is_edm
from pipelines.engine import Engine, resolve
from pipelines.family import Drawing, Place
from pipelines.vae import shift_and_scale
from renderer import ROOT, Renderer
from training import encode
from training.board import check_installed
from training.buckets import CELL_PX
from training.card import write_card
from training.config import ControlNetConfig as ControlNetConfig
from training.controlnet import ControlNetTask
from training.data import Loader, Pair, read_pairs
from training.export import has_single_file, write_folder, write_single_file
from training.further import load_controlnet as load_controlnet
from training.hub import located
from training.monitor import Monitor
from training.objectives import Objective
from training.offered import offer
from training.optimiser import check_factors, check_optimiser
from training.push import check_push, push
from training.reward import check_evaluator, make_reward
from training.sharding import check_launcher, check_sharding
from training.steering import steering
from training.texts import SizesTold, cached_texts
from training.trainer import OnStep, Run, check_resume, micro_batch, train

LOCK = "train.lock"  # in the run's folder
PATIENCE = timedelta(days=1)  # one process draws the samples and encodes captions; NCCL would give the others up after ten minutes
# what a resumed run may change without its weights becoming others; the trainer speaks for `train` itself
RESULT_KEEPS = {"train", "monitor", "cache", "cache_batch", "weights", "single_file", "push", "gradient_checkpointing"}
HOLD_OUT_OF = 10  # pairs to one that is held out; from smaller sets all is learned


def read_config(path: Path, overrides: Sequence[str] = ()) -> ControlNetConfig:
    """A YAML file, or the name of one in `examples`, with `key=value` overrides, dots leading inwards: `train.steps=500`.

    Raises:
        BadRequest: one line that names what is wrong.
    """
    if not path.suffix and not path.is_file():
        known = {file.stem: file for file in (ROOT / "examples").glob("*.yaml")}
        if str(path) not in known:
            raise unknown_name("settings", str(path), known)
        path = known[str(path)]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRequest(f"config {str(path)!r} cannot be read ({error.strerror}): check the path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadRequest(f"config {str(path)!r} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise BadRequest(f"config {str(path)!r} holds no keys: see `limn train --help`")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise BadRequest(f"override {override!r} is not key=value, as in train.steps=500")
        place: dict[str, Any] = values
        *outer, last = key.split(".")
        for name in outer:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise BadRequest(f"override {override!r}: {name!r} holds a value, not keys")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadRequest(f"override {override!r}: {text!r} is not YAML, as true, 0.5, a name or [1, 2] are") from None
    try:
        return ControlNetConfig.model_validate(values)
    except ValidationError as error:
        raise BadRequest(f"config {str(path)!r}: {explain(error)}") from None


def main(path: Path, overrides: Sequence[str] = ()) -> Run:
    """What `limn train` calls: trains, and gives the result its name in `limn models`."""
    run = train_controlnet(read_config(path, overrides))
    if run.main and (name := offer(run.config.out / "weights")):
        run.say(f"{run.task.name}: listed by limn models, and drawn with, as {name}")
    return run


def train_controlnet(config: ControlNetConfig, on_step: OnStep | None = None) -> Run:
    """Trains a ControlNet and publishes it as the diffusers folder `<train.out>/weights`. Started again, it goes on.

    Raises:
        BadRequest, BadModel, BadImage, Mismatch: something given is wrong, or another process trains in that folder; nothing was trained.
        Cancelled: as `trainer.train`.
    """
    check_installed(config.monitor.wandb)
    check_optimiser(config.train)
    check_push(config.push)
    check_launcher()
    state = PartialState(cpu=config.train.on_cpu, timeout=PATIENCE)
    check_sharding(config.train, state.num_processes)
    micro_batch(config.train, state.num_processes)
    engine = Engine(place_of(config, state))
    lock = (config.train.out / LOCK, "trained in", "wait for it, stop it, or give another train.out")
    if state.is_main_process:
        check_free(*lock)
        check_resume(config.train)  # said before the cache is made
    task = build_task(config, state, engine)
    with held(*lock) if state.is_main_process else nullcontext():
        return _train(config, state, task, engine, on_step)


def _train(config: ControlNetConfig, state: PartialState, task: ControlNetTask, engine: Engine, on_step: OnStep | None) -> Run:
    if state.is_main_process:
        text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        publish(config.train.out / "config.yaml", text.encode())
    monitor = Monitor(task, config.monitor, config.train.out, Renderer(engine, config.base))
    monitor.waiting.rest()

    def after(run: Run) -> None:
        monitor(run)
        if on_step:
            on_step(run)

    run = train(task, config.train, after)
    if config.push and run.main:
        run.say(f"{task.name}: published at {push(config.train.out / 'weights', config.push)}")
    return run


def build_task(config: ControlNetConfig, state: PartialState, engine: Engine | None = None) -> ControlNetTask:
    """The task that a config describes, its cache built. Every process of a run calls this; each builds its share."""
    _check_base(path := resolve(config.base))
    models = engine or Engine(place_of(config, state))
    public, given = config, config.data  # as it was typed: a name on the hub, no folder of this machine
    with state.main_process_first():
        config = config.model_copy(update={"data": given.model_copy(update={"folder": located(given.folder)})})
    pairs = read_pairs(config.data)
    home = config.train.out if config.data != given else given.folder if given.folder.is_dir() else given.folder.parent
    folder = config.cache or home / "cache"
    sizes = encode.sizes_of(config.data, pairs, folder / "contents.json", lambda: max(CELL_PX, models.outline(path).side_px))
    loader = Loader(config.data, sizes, config.base)
    loader.check(pairs)
    check_evaluator(config.reward, loader, config.base, bool(config.monitor.fidelity_every))
    base = models.base(path)
    for size in {(config.data.width, config.data.height), *loader.sizes.values()}:
        base.latent_shape(*size)  # refuses what the model cannot draw
    vae: Any = base.networks()["vae"].float()
    start: dict[str, Any] = {"variant": config.variant, "rank": config.rank, "channels": loader.channels, "kind": loader.kind}
    control = steering(base, config.hint_channels, config.blocks, **start)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)  # the hint encoder's first weights
        net = control.new() if config.init is None else load_controlnet(base, config.init, control, config.blocks)
    net.register_to_config(**loader.told())
    # what is refused is refused before the cache is made
    check_factors(config.train, [f"controlnet.{name}" for name, parameter in net.named_parameters() if parameter.requires_grad])
    shift_here = base.shift(config.data.width, config.data.height).factor
    objective = Objective(base.path, base.parameterisation, config.objective, shift_here)
    if config.gradient_checkpointing:
        net.enable_gradient_checkpointing()
    drawing = Drawing(config.data.width, config.data.height, config.guidance_scale)
    encoders = [part for part in base.checkpoint.classes if part.startswith(("text_encoder", "tokenizer")) and base.checkpoint.has(part)]
    parts = {part: encode.files_of(base, part) for part in (*encoders, "vae")}
    text_parts = {part.replace("text_encoder", "encoder"): parts[part] for part in encoders}
    if config.base_weights != "fp32":
        text_parts["dtype"] = {"of": config.base_weights}
    encode.check(folder, pairs, loader)
    texts = cached_texts(folder, [pair.caption for pair in pairs], base, drawing, text_parts)
    if base.name == "sdxl":
        texts.told = SizesTold(encode.originals(pairs, folder / "contents.json"), pairs, loader)
    conditions = None
    if control.reads_latents:
        conditions = encode.latents(folder, pairs, loader, control.condition, {"encoder": parts["vae"], **control.fed})
    elif config.data.extract:
        conditions = encode.conditions(folder, pairs, loader)
    shift, scale = shift_and_scale(vae, base.place.device)
    offset = float(shift * scale) if base.name == "sd3" else 0.0
    name = f"controlnet-{config.data.title}"
    kind = "+".join(control.name if control else "KIND" for control in loader.controls)
    return ControlNetTask(
        net=net,
        base=base,
        steering=control,
        objective=objective,
        pairs=pairs,
        loader=loader,
        moments=encode.moments(folder, pairs, loader, vae, {"encoder": parts["vae"]}, batch=config.cache_batch),
        texts=texts,
        scale=scale,
        shift=shift,
        conditions=conditions,
        caption_dropout=config.caption_dropout,
        condition_dropout=config.condition_dropout,
        prior_share=config.prior_share,
        reward=make_reward(config.reward, loader, vae, (shift, scale)),
        told=flat(public.model_dump(mode="json", exclude=RESULT_KEEPS)),
        write=Exporter(name.replace("/", "-"), public, len(pairs), kind, offset),
        held_out=(measured := held_out(pairs, config.monitor.samples)),
        holds_out=len(pairs) > HOLD_OUT_OF * len(measured),
        name=name,
    )


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under names with dots, as on the command line."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= {f"{name}.{inner}": one for inner, one in flat(value).items()} if isinstance(value, dict) and value else {name: value}
    return out


def _check_base(path: Path) -> None:
    """
    Raises:
        BadModel: it is a ControlNet, or of the EDM kind.
    """
    checkpoint = open_checkpoint(path)
    kind = checkpoint.classes.get("")
    if checkpoint.has("scheduler") and is_edm(checkpoint.config("scheduler")):
        raise BadModel(f"base {str(path)!r} is of the EDM kind, told noise levels: train on a base of noise, velocity or flow prediction")
    if kind is not None and "ControlNet" in kind and not kind.endswith("Pipeline"):
        raise BadModel(
            f"base {str(path)!r} is itself a ControlNet ({kind}): give the model that it was made for; to train it further, name it as init"
        )


def place_of(config: ControlNetConfig, state: PartialState) -> Place:
    """Where the base is, and in what precision.

    Raises:
        BadRequest: the base is to be bf16 and the forward pass is not.
    """
    if config.base_weights == "bf16" and config.train.precision != "bf16":
        raise BadRequest(f"base_weights bf16 with train.precision {config.train.precision}: set train.precision=bf16, or base_weights=fp32")
    return Place(state.device, torch.bfloat16 if config.base_weights == "bf16" else torch.float32)


def held_out(pairs: Sequence[Pair], count: int) -> list[int]:
    """Positions of `count` pairs that are measured, spread evenly; none is mirrored or a further crop."""
    plain = [position for position, pair in enumerate(pairs) if not pair.mirrored and not pair.crop]
    return [plain[number * len(plain) // count] for number in range(count)] if len(plain) > count else plain


@dataclass
class Exporter:
    """Writes a ControlNet as it is after some step: its folder, and in it the single file and the model card.

    name: of the single file, without a folder's slash. shift: of SD3's latents, for the single file.
    """

    name: str
    config: ControlNetConfig
    pairs: int
    kind: str
    shift: float = 0.0

    def __call__(self, folder: Path, net: Any, step: int | None) -> None:
        write_folder(folder, net, self.config.weights)
        if self.config.single_file and has_single_file(net):
            write_single_file(folder / f"{self.name}.safetensors", net, self.config.weights, self.shift)
        train, data = self.config.train, self.config.data
        facts = {"base": self.config.base, "condition": data.title, "kind": self.kind, "pairs": self.pairs, "steps": step or train.steps}
        write_card(folder, self.name, facts, self.config.model_dump(mode="json"), train.out)
