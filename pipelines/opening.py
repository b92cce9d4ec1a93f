"""How a model is opened, as options of commands: where it computes, in which numbers, and how it lies in memory."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # torch is heavy
    from pipelines.engine import Engine
    from pipelines.residency import Memory

Options = dict[str, tuple[Any, Any]]
"""Of a command, by the name of the parameter: its type with its option, and its default."""

PANEL = "Device and memory"
DEVICES = "cuda, cuda:1, mps or cpu; by default the first of them here"
DTYPES = "float32 (by default on the CPU), float16 or bfloat16 (elsewhere, whichever suits the family)"
OFFLOADS = "none, model (whole networks wait on the CPU), group (layer by layer) or sequential (least memory, slowest)"
STORAGES = "as_computed or float8 (8 bits, spread out while they compute)"
QUANTISED = "none, int8 (needs torchao), llm_int8 or nf4 (need bitsandbytes)"
ATTENTION = "sdpa, flash, sage or xformers"


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=PANEL)


OPENING: Options = {
    "device": (Annotated[str | None, _option("--device", f"What computes: {DEVICES}.")], None),
    "dtype": (Annotated[str | None, _option("--dtype", f"In which numbers: {DTYPES}.")], None),
    "offload": (Annotated[str, _option("--offload", f"What waits on the CPU: {OFFLOADS}.")], "none"),
    "storage": (Annotated[str, _option("--storage", f"In which numbers the weights are kept: {STORAGES}.")], "as_computed"),
    "quantise": (Annotated[str, _option("--quantise", f"How matrices are rounded: {QUANTISED}.")], "none"),
    "attention": (Annotated[str | None, _option("--attention", f"{ATTENTION}; by default the library's own.")], None),
}


def taking(options: Options) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes of a command with `**options` one that has these in their place, as typer wants to see them."""

    def made(command: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind != inspect.Parameter.VAR_KEYWORD]
        ours = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for name, (kind, value) in options.items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *ours])  # type: ignore[attr-defined]
        command.__annotations__ |= {one.name: one.annotation for one in ours}
        return command

    return made


@dataclass(frozen=True)
class Opening:
    """What was typed of `OPENING`; see `pipelines.engine.choose_place` and `pipelines.residency.Memory`."""

    device: str | None = None
    dtype: str | None = None
    offload: str = "none"
    storage: str = "as_computed"
    quantise: str = "none"
    attention: str | None = None

    @classmethod
    def asked(cls, options: Mapping[str, Any]) -> "Opening":
        """From a command's options by their names, those that it has."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})

    @property
    def memory(self) -> "Memory | None":
        """How the model lies in memory; None by default."""
        from pipelines.residency import Memory

        memory = Memory(**{field.name: getattr(self, field.name) for field in fields(Memory)})
        return None if memory == Memory() else memory

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU was asked for."""
        return (self.device or "").partition(":")[0] == "cpu"

    @property
    def rounding(self) -> tuple[str, ...]:
        """What was asked for that changes pictures, by its names."""
        memory = self.memory
        return (*(memory.rounding if memory else ()), *(() if self.dtype is None else (self.dtype,)))

    def engine(self) -> "Engine":
        """An engine with nothing loaded.

        Raises:
            BadRequest: something of it cannot be had here.
        """
        from pipelines.engine import Engine, choose_place

        return Engine(choose_place(self.device, self.dtype), self.memory)

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as `Renderer.open` takes it."""
        return {"device": self.device, "dtype": self.dtype, "memory": self.memory}
