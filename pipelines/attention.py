"""Work that attention layers do over and over, done once; and attention in which a picture's cells do not see one another.

All of it is put in for the length of a `with` and taken out again. Axes: B rows, L tokens, D width.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from core.errors import Mismatch

TEXTS_KEPT = 4  # prompts that alternate from step to step, and the two halves of guidance alone


@contextmanager
def remembered(networks: Sequence[Any]) -> Iterator[None]:
    """Keys and values of the text are projected once for each text instead of at every step; bit-identical.

    Held for UNets and their ControlNets, whose cross-attention reads the text as it was encoded. A text is known by its tensor, so the
    caller gives the same one at every step.
    """
    with ExitStack() as stack:
        for network in networks:
            for module in network.modules() if _is_unet(network) else ():
                if getattr(module, "is_cross_attention", False):
                    for projection in (module.to_k, module.to_v):
                        stack.enter_context(replaced(projection, _once_for_each(projection.forward)))
        yield


def _is_unet(network: Any) -> bool:
    """A UNet of diffusers that reads text, or a ControlNet of one."""
    return hasattr(network, "down_blocks") and hasattr(network, "conv_in") and network.config.get("cross_attention_dim") is not None


def _once_for_each(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    known: OrderedDict[int, tuple[Tensor, Tensor]] = OrderedDict()

    def once(states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        found = known.get(id(states))
        if found is None or found[0] is not states:
            found = (states, forward(states, *arguments, **options))
            known[id(states)] = found
            if len(known) > TEXTS_KEPT:
                known.popitem(last=False)
        return found[1]

    return once


@contextmanager
def shared_start(network: nn.Module, blocks: int) -> Iterator[None]:
    """What a UNet does before it first reads the text is done for one of `blocks` equal blocks of rows and copied to the others.

    Equal to rounding, for other batch sizes add up in another order. Only for UNets that are told nothing else about the rows (SD 1 and 2).
    """
    with ExitStack() as stack:
        for module in _before_the_text(network) if blocks > 1 else []:
            stack.enter_context(replaced(module, _for_one_block(module.forward, blocks)))
        yield


def _before_the_text(network: Any) -> list[nn.Module]:
    """The modules that see the picture alone, in the order they run; none where rows differ in more than the text."""
    told = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "time_cond_proj_dim")
    if not _is_unet(network) or any(network.config.get(key) for key in told):
        return []
    modules = [network.conv_in]
    first = network.down_blocks[0]
    if not hasattr(first, "attentions"):
        return modules
    transformer = first.attentions[0]
    block = transformer.transformer_blocks[0]
    modules += [first.resnets[0], transformer.norm, transformer.proj_in, block.norm1]
    return modules if block.attn1.is_cross_attention else [*modules, block.attn1]


def _for_one_block(forward: Callable[..., Tensor], blocks: int) -> Callable[..., Tensor]:
    def one(*arguments: Any, **options: Any) -> Tensor:
        rows = arguments[0].shape[0]
        # Convolutions see (B, C, H, W), linear layers (B, L, D): rows come first everywhere.
        first = [_first(value, rows, rows // blocks) for value in arguments]
        out = forward(*first, **{key: _first(value, rows, rows // blocks) for key, value in options.items()})
        return out.repeat(blocks, *(1,) * (out.ndim - 1))

    return one


def _first(value: Any, rows: int, kept: int) -> Any:
    return value[:kept] if isinstance(value, Tensor) and value.ndim and value.shape[0] == rows else value


@contextmanager
def replaced(module: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """A module with another `forward`; whatever was there before, a hook of another library included, comes back."""
    had, before = "forward" in vars(module), module.forward
    module.forward = forward
    try:
        yield
    finally:
        if had:
            module.forward = before
        else:
            del module.forward


@contextmanager
def perturbed(network: nn.Module, pattern: str, rows: int) -> Iterator[None]:
    """In the attention layers whose names match a pattern, the last `rows` rows' cells see themselves and the text alone.

    Source: Ahn et al., Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance, 2024, eq. 15; for linear attention, which has
    no map to perturb, a cell that sees itself alone is its own value, as in diffusers' pipeline for Sana.

    Raises:
        Mismatch: no layer of the network matches.
    """
    layers: list[Any] = [module for name, module in network.named_modules() if hasattr(module, "processor") and re.search(pattern, name)]
    if not layers:
        raise Mismatch(f"perturbed attention: no attention layer of {type(network).__name__} matches {pattern!r}; set pag_scale to 0")
    before = [layer.processor for layer in layers]
    for layer in layers:
        layer.processor = (_PerturbedLinear if _is_linear(layer.processor) else _Perturbed)(layer.processor, rows)
    try:
        yield
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.processor = processor


class _Perturbed:
    """An attention processor whose last rows are perturbed; the others are the original's."""

    def __init__(self, original: Any, rows: int) -> None:
        self.original, self.rows = original, rows

    def __call__(self, attention: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        count = hidden_states.shape[0]

        def part(process: Callable[..., Any], rows: slice) -> Any:
            taken = [_taken(value, count, rows) for value in arguments]
            return process(attention, hidden_states[rows], *taken, **{key: _taken(value, count, rows) for key, value in options.items()})

        whole = part(self.original, slice(0, count - self.rows))
        broken = part(self.broken, slice(count - self.rows, count))
        if isinstance(whole, tuple):
            return tuple(torch.cat(pair) for pair in zip(whole, broken, strict=True))
        return torch.cat([whole, broken])

    def broken(self, attention: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Any:
        """What the processor makes of rows whose cells see themselves and the text alone."""
        with _EachToItself(hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states[0, 0].numel()) as mode:
            found = self.original(attention, hidden_states, *arguments, **options)
        if not mode.met:
            raise Mismatch("perturbed attention needs torch's own attention: set the attention backend to 'native', or pag_scale to 0")
        return found


class _PerturbedLinear(_Perturbed):
    """The same for Sana's linear attention."""

    def broken(self, attention: Any, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The cells' own values, through the layer's end."""
        project, drop = attention.to_out
        values: Tensor = drop(project(attention.to_v(hidden_states)))
        if values.dtype == torch.float16:  # as the original processor ends
            values = values.clip(torch.finfo(torch.float16).min, torch.finfo(torch.float16).max)
        return values


def _is_linear(processor: Any) -> bool:
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    return isinstance(processor, SanaLinearAttnProcessor2_0)


def _taken(value: Any, count: int, rows: slice) -> Any:
    return value[rows] if isinstance(value, Tensor) and value.ndim and value.shape[0] == count else value


class _EachToItself(TorchFunctionMode):
    """Attention in which the first `cells` tokens, the picture's, do not see one another."""

    def __init__(self, cells: int) -> None:
        super().__init__()
        self.cells, self.met = cells, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            query, key = args[0], args[1]
            mask = torch.zeros(query.shape[-2], key.shape[-2], dtype=query.dtype, device=query.device)
            mask[: self.cells, : self.cells] = float("-inf")
            mask[: self.cells, : self.cells].fill_diagonal_(0.0)
            options["attn_mask"], self.met = mask, True
        return func(*args, **options)
