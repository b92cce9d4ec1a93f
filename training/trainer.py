"""The one training loop: any task, one process or many, stopped and resumed anywhere with the same result.

One process is plain `python`; several are `torchrun --nproc_per_node N`, each of which takes its slice of every batch. The batch is the
same whatever the processes and micro-batches are, and so are the weights, to rounding.
"""

import errno
import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import accelerate
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from core.errors import BadRequest, Cancelled, DiskFull, LimnError, Mismatch, OutOfMemory
from core.files import sweep_temps
from pipelines.memory import is_out_of_memory
from training import checkpoint as checkpoints
from training.buckets import BucketOrder
from training.compiled import LIMITS, Regions, batches_of_each_size, compile_proven
from training.config import HARMLESS, TrainConfig
from training.onednn import learning_by_onednn
from training.optimiser import Average, rate
from training.processes import Copies, Shards
from training.progress import Reporter
from training.randomness import Draws, Order, key
from training.sharding import check_sharding, split_state, whole_state
from training.sharding import whole as gathered
from training.signals import outlive_sigterm, stop_signals
from training.task import OnStep, Run, Task, WithBuckets, WithFrozen, WithSettings
from training.zero import Zero

__all__ = ["OnStep", "Run", "Task", "WithFrozen", "train"]

PROCESSES = {"none": Copies, "fsdp": Shards, "zero": Zero}  # by train.sharding


def train(task: Task, config: TrainConfig, on_step: OnStep | None = None) -> Run:
    """Trains until `config.steps`, going on from the newest whole checkpoint in `config.out`, and exports to `<out>/weights`.

    `on_step` is called in every process after each optimiser step.

    Raises:
        Cancelled: Ctrl-C or SIGTERM; a checkpoint of the last finished step stands.
        LimnError: the gradient is no longer finite; the error names the step and the last good checkpoint.
        BadModel: there are checkpoints and none is whole. Mismatch: they are of another task.
        DiskFull: there is no room for a checkpoint or a line of the log.
        OutOfMemory: a micro-batch does not fit; the message names settings that give the same result with less.
    """
    accelerator = Accelerator(
        cpu=config.on_cpu,
        mixed_precision="no",  # autocast is entered below, so that tasks of one process may differ in it
        dynamo_backend="no",  # whatever `accelerate config` was told: what is compiled is proven (`train.compile`)
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    try:
        return _Trainer(task, config, accelerator).run(on_step)
    except OSError as error:  # of what is written besides checkpoints, which say it themselves
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DiskFull(
            f"{task.name}: no room to write in {str(config.out)!r} ({error.strerror}): free some space; the same command goes on from the "
            "newest checkpoint"
        ) from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_smaller(task, config, accelerator)) from None


def micro_batch(config: TrainConfig, processes: int) -> int:
    """How many samples a process has at once.

    Raises:
        BadRequest: the batch does not split over them.
    """
    share = config.accumulation * processes
    if config.batch_size % share:
        raise BadRequest(
            f"batch_size {config.batch_size} does not split over {processes} processes × {config.accumulation} micro-batches: "
            f"make it a multiple of {share}"
        )
    return config.batch_size // share


def check_resume(config: TrainConfig) -> None:
    """Raises BadRequest if there is a checkpoint where there must be none, or none where there must be one."""
    folder = config.out / "checkpoints"
    standing = checkpoints.steps(folder)
    if config.resume == "never" and standing:
        raise BadRequest(f"{folder} holds a checkpoint of step {standing[-1]} and resume is never: use another `out` or resume=auto")
    if config.resume == "must" and not standing:
        raise BadRequest(f"{folder} holds no checkpoint and resume is must: give the `out` of a run that has one, or resume=auto")


class _Trainer:
    def __init__(self, task: Task, config: TrainConfig, accelerator: Accelerator) -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        if not len(task):
            raise BadRequest(f"task {task.name!r} has no samples to train on")
        self.micro = micro_batch(config, accelerator.num_processes)
        self.order = _order(task, config)
        self.settings = task.settings() if isinstance(task, WithSettings) else {}
        self.folder = config.out / "checkpoints"
        self.frozen = list(task.frozen().values()) if isinstance(task, WithFrozen) else []
        for module in self.frozen:
            module.requires_grad_(False).eval().to(accelerator.device)
        self.whole = whole = _Whole(task, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.precision))
        whole.train().to(accelerator.device)
        check_sharding(config, accelerator.num_processes)
        self.processes = PROCESSES[config.sharding](whole, accelerator, config)
        named = {name.removeprefix("parts."): p for name, p in whole.named_parameters() if p.requires_grad}
        self.optimiser = self.processes.optimiser(named)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "fp16")
        self.average = Average(named, config.ema_decay, on_cpu=config.ema_on_cpu)

    def run(self, on_step: OnStep | None) -> Run:
        config, main = self.config, self.accelerator.is_main_process
        if main:
            config.out.mkdir(parents=True, exist_ok=True)
            sweep_temps(self.folder)
            sweep_temps(config.out)
        start, consumed, notes = self._resume()
        consumed = self.order.begin(consumed)
        run = Run(start, self.task, config, self.average, main)
        reporting = Reporter(config.out, self.task.name, start, config.steps, quiet=not main)
        with self._fast(notes), reporting as reporter, stop_signals() as stop:
            run.say = reporter.say
            for note in notes:
                reporter.say(f"{self.task.name}: {note}")
            batches = self._batches(start, consumed)
            saved, saved_at, logged, norm = start, time.monotonic(), start, None
            meter: dict[str, Tensor] = {}
            for step in range(start, config.steps):
                self._gradient(batches, meter)
                self._check(norm, step, saved)
                norm = self.optimiser.step(step, self.scaler)
                self.average.update(step)
                run.step = done = step + 1
                reporter.step(done)
                run.fresh = done % config.log_every == 0 or done == config.steps
                if run.fresh:
                    run.metrics = self._means(meter, done - logged) | {"lr": rate(config, step)} | self._memory() | run.noted
                    reporter.record(done, run.metrics, (done - logged) * config.batch_size)
                    meter, logged = {}, done
                if on_step:
                    on_step(run)
                late = time.monotonic() - saved_at > 60 * config.checkpoint_minutes
                stopping, late = self._agree(stop.is_set(), late)
                if stopping or late or done % config.checkpoint_every == 0 or done == config.steps:
                    self._check(norm, done, saved)
                    self._save(done, consumed + (done - start) * config.batch_size)
                    saved, saved_at = done, time.monotonic()
                if stopping and done < config.steps:
                    raise Cancelled(f"{self.task.name}: stopped after step {done} of {config.steps}; the same command goes on from there")
            weights = run.weights() if main or config.sharding == "fsdp" else {}
            if main:
                checkpoints.publish_again(config.out / "weights", lambda folder: self.task.export(folder, weights))
            self.accelerator.wait_for_everyone()
        return run

    @contextmanager
    def _fast(self, notes: list[str]) -> Iterator[None]:
        """Layers by the faster library, or repeated blocks compiled, in every process or in none; `notes` gets what came of it."""
        config, device, networks = self.config, self.accelerator.device, [self.whole, *self.frozen]
        if not config.compile:
            with learning_by_onednn(networks):
                yield
            return
        regions, limit = Regions(networks), LIMITS[self.whole.autocast or torch.float32]
        given = batches_of_each_size(self.task, self.micro, config.seed, device)
        problem = compile_proven(self.whole, regions, given, limit=limit)
        try:
            if float(self.accelerator.reduce(torch.tensor(float(problem is None), device=device), "mean")) < 1:
                regions.undo()
                notes.append(f"nothing is compiled: {problem or 'another process could not'}")
            else:
                notes.append(f"{len(regions.blocks)} blocks are compiled; every gradient of a batch was the same to {limit:g} of its size")
            yield
        finally:
            regions.undo()

    def _gradient(self, batches: Iterator[tuple[range, Any]], meter: dict[str, Tensor]) -> None:
        """Accumulates one step's mean gradient."""
        config, device = self.config, self.accelerator.device
        for micro in range(config.accumulation):
            counters, batch = next(batches)
            if isinstance(batch, LimnError):
                raise batch
            # for modules that draw from torch's own generator, such as nn.Dropout
            torch.manual_seed(key(config.seed, "torch", counters[0]))
            with self.processes.micro_batch(last=micro == config.accumulation - 1):
                loss, metrics = self.processes.model(send_to_device(batch, device, non_blocking=True), Draws(config.seed, counters, device))
                self.processes.backward(self.scaler.scale(loss / config.accumulation))
            for name, value in {"loss": loss, **metrics}.items():
                value = torch.as_tensor(value, dtype=torch.float32, device=device).detach() / config.accumulation
                meter[name] = meter[name] + value if name in meter else value

    def _check(self, norm: Tensor | None, step: int, saved: int) -> None:
        """Stops at a gradient of step `step` that is not finite. Called late, so that an accelerator need not wait for its answer.

        In fp16 such a step was left out and the loss is scaled down, until there is nothing left to scale.
        """
        if norm is not None and not math.isfinite(float(norm)) and self.scaler.get_scale() <= 1:
            good = f"the last good checkpoint is of step {saved}" if saved else "no checkpoint was made yet"
            raise LimnError(
                f"{self.task.name}: the gradient's norm is {float(norm)} at step {step}; {good}: lower learning_rate "
                f"(now {self.config.learning_rate:g}), or look at the samples of that step"
            )

    def _batches(self, start: int, consumed: int) -> Iterator[tuple[range, Any]]:
        """This process's micro-batches from step `start` on, each with the counters of its samples."""
        config, processes, rank = self.config, self.accelerator.num_processes, self.accelerator.process_index

        def plan() -> Iterator[range]:
            for first in range(consumed, consumed + (config.steps - start) * config.batch_size, self.micro * processes):
                yield range(first + rank * self.micro, first + (rank + 1) * self.micro)

        loader: DataLoader[Any] = DataLoader(
            _Samples(self.task, self.order),
            sampler=plan(),
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=config.workers,
            worker_init_fn=outlive_sigterm,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),
        )
        return zip(plan(), loader, strict=True)

    def _means(self, meter: dict[str, Tensor], steps: int) -> dict[str, float]:
        """The metrics' means over the steps since the last record, and over processes."""
        values = torch.stack(list(meter.values())) / steps
        values = self.accelerator.reduce(values, "mean")
        return dict(zip(meter, values.tolist(), strict=True))

    def _memory(self) -> dict[str, float]:
        """The accelerator's peak so far, in GiB; on a CPU this process's."""
        device = self.accelerator.device
        if device.type == "cuda":
            return {"memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB; macOS counts bytes
        return {"memory_gib": peak / (2**30 if sys.platform == "darwin" else 2**20)} if device.type == "cpu" else {}

    def _agree(self, stop: bool, late: bool) -> tuple[bool, bool]:
        """What any process wants, all do: a signal and a clock do not reach them at the same step."""
        if self.accelerator.num_processes == 1:
            return stop, late
        wishes = torch.tensor([float(stop), float(late)], device=self.accelerator.device)
        stopping, saving = self.accelerator.reduce(wishes, "sum").tolist()
        return stopping > 0, saving > 0

    def _save(self, step: int, consumed: int) -> None:
        model = {f"{part}.{name}": tensor for part, module in self.task.modules().items() for name, tensor in whole_state(module).items()}
        average = {name: gathered(tensor) for name, tensor in self.average.tensors.items()}
        optimiser = self.optimiser.state()
        if self.accelerator.is_main_process:
            state = {
                "task": self.task.name,
                "samples": len(self.task),
                "consumed": consumed,
                "config": self.config.model_dump(mode="json"),
                "settings": self.settings,
                "scaler": self.scaler.state_dict(),
                "versions": {"torch": torch.__version__, "accelerate": accelerate.__version__},
            }
            made = checkpoints.Checkpoint(step, model, average, optimiser, state)
            checkpoints.save(self.folder, made, self.config.keep)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> tuple[int, int, list[str]]:
        """Goes back to the newest whole checkpoint, which the main process chooses: its step, the samples consumed, what to say."""
        found, notes = None, list[str]()
        if self.accelerator.is_main_process:
            check_resume(self.config)
            found, notes = checkpoints.newest_whole(self.folder)
        if self.accelerator.num_processes > 1:
            (chosen,) = broadcast_object_list([found.step if found else None])
            found = found or (None if chosen is None else checkpoints.load(self.folder, chosen))
        if found is None:
            return 0, 0, notes
        self._restore(found)
        notes.append(f"going on from step {found.step} of {self.config.steps}")
        was = found.state["config"] | {"samples": found.state["samples"]} | found.state.get("settings", self.settings)
        now = self.config.model_dump(mode="json", exclude=HARMLESS) | {"samples": len(self.task)} | self.settings
        notes += [f"{name} was {was[name]}, is now {value}" for name, value in now.items() if was.get(name, value) != value]
        return found.step, int(found.state["consumed"]), notes

    def _restore(self, found: checkpoints.Checkpoint) -> None:
        if found.state["task"] != self.task.name:
            raise Mismatch(f"{self.folder} holds checkpoints of task {found.state['task']!r}, not {self.task.name!r}: use another `out`")
        if (was := found.state["config"]["optimiser"]) != (now := self.config.optimiser):
            raise Mismatch(f"the checkpoint is of another optimiser than {now} ({was}): use another `out`, or train.optimiser={was}")
        for part, module in self.task.modules().items():
            mine = {name.removeprefix(f"{part}."): tensor for name, tensor in found.model.items() if name.startswith(f"{part}.")}
            try:
                module.load_state_dict(split_state(mine, module))
            except RuntimeError as error:
                first = str(error).splitlines()[1:2] or [str(error)]
                raise Mismatch(
                    f"the checkpoint of step {found.step} does not fit module {part!r} ({first[0].strip()[:200]}): use another `out`"
                ) from None
        self.average.load(found.average)
        self.optimiser.load(found.optimiser)
        if scaling := found.state.get("scaler"):
            self.scaler.load_state_dict(scaling)


def _smaller(task: Task, config: TrainConfig, accelerator: Accelerator) -> str:
    """What to set where memory has run out."""
    micro = config.batch_size // (config.accumulation * accelerator.num_processes)
    said = f"{task.name}: {accelerator.device.type} has too little memory for micro-batches of {micro}"
    if micro > 1:
        halves = config.accumulation * 2 if micro % 2 == 0 else config.accumulation * micro
        return f"{said}: set train.accumulation={halves}, which gives the same result"
    saving = ["train.precision=bf16"] * (config.precision == "fp32") + ["gradient_checkpointing=true", "train.optimiser=adamw8bit"]
    saving += ["train.ema_on_cpu=true"] * (accelerator.device.type != "cpu" and not config.ema_on_cpu and config.ema_decay > 0)
    return f"{said}: set {', then '.join(saving)}, or a smaller data.width and data.height"


class _Whole(nn.Module):
    """All modules of a task as one, whose forward is the task's loss: what is wrapped for several processes."""

    def __init__(self, task: Task, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(task.modules())
        self.task, self.autocast = task, autocast

    def forward(self, batch: Any, draws: Draws) -> tuple[Tensor, dict[str, float | Tensor]]:
        with torch.autocast(draws.device.type, self.autocast) if self.autocast else nullcontext():
            return self.task.loss(batch, draws)


class _Samples(Dataset[Any]):
    """A task's samples by counters."""

    def __init__(self, task: Task, order: Order | BucketOrder) -> None:
        self.task, self.order = task, order

    def __getitem__(self, counters: Any) -> Any:
        """A micro-batch, or the error in its place: a worker's own would come with its whole traceback as the message."""
        try:
            return self.task.batch(self.order.indices(counters))
        except LimnError as error:
            return error


def _order(task: Task, config: TrainConfig) -> Order | BucketOrder:
    buckets = task.buckets() if isinstance(task, WithBuckets) else []
    return BucketOrder(buckets, config.batch_size, config.seed) if len(set(buckets)) > 1 else Order(len(task), config.seed)


def _unchanged(batch: Any) -> Any:
    return batch
