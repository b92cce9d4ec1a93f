"""CLIP and T5 text encoders given weighted wordings of any length. Axes: L tokens, D width.

CLIP reads windows of 77 tokens (the tokenizer's `model_max_length`), so a longer prompt is read as several and their states are joined: a
window that would cut words after a comma, at most 20 tokens back, ends at the comma; BREAK ends one at once. A weight multiplies its
tokens' states, and the window's mean is then restored: A1111's "original" emphasis. A short prompt without weights is one window, encoded
as diffusers does. T5 reads one window of a stated length and reports what did not fit; a weight multiplies its tokens' states, whose mean
is near 0 and is let be.

Source: AUTOMATIC1111, stable-diffusion-webui wiki, Features: "Infinite prompt length", "BREAK keyword", "Clip skip", "Emphasis".
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from core.errors import BadRequest, Mismatch
from pipelines.inversion import Inversions, Vectors
from pipelines.prompt import Phrase, Wording

# The states that the denoising network was trained on: SD 1.x and 2.x read the last layer's through the final norm; SDXL and SD3 the last
# but one's without it.
Layer = Literal["last", "penultimate"]

_BACKTRACK = 20  # tokens a window may give up to end at a comma
# Below this share of the states' deviation the mean is rounding and the ratio of two such means says nothing.
_MEAN_COUNTS = 0.02


@dataclass(frozen=True)
class Encoded:
    """tokens_1LD: the windows' states, joined. pooled_1D: of the first window, without weights. windows: how many there are."""

    tokens_1LD: Tensor
    pooled_1D: Tensor | None
    windows: int


@dataclass
class _Window:
    """Tokens without their start and end; fixes: embeddings to put in the place of tokens, by position."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    fixes: dict[int, Vectors] = field(default_factory=dict)

    def split(self, at: int) -> "_Window":
        """Everything from a position on, cut off."""
        rest = _Window(self.ids[at:], self.weights[at:], {i - at: vectors for i, vectors in self.fixes.items() if i >= at})
        del self.ids[at:], self.weights[at:]
        self.fixes = {i: vectors for i, vectors in self.fixes.items() if i < at}
        return rest


@torch.inference_mode()
def encode_windows(
    text_encoder: Any,
    tokenizer: Any,
    wording: Wording,
    *,
    clip_skip: int = 1,
    layer: Layer = "last",
    windows: int = 1,
    inversions: Inversions | None = None,
) -> Encoded:
    """A wording through one CLIP text encoder.

    clip_skip: which layer is read, 1 the one that `layer` says, 2 the one before. windows: the least number of them; what is missing
    is filled with windows of the empty prompt. Each window is encoded alone, so that its states do not depend on how many others
    there are.

    Raises:
        BadRequest: clip_skip is more than the encoder has layers.
    """
    check_clip_skip(text_encoder, clip_skip, layer)
    filled = _windows(tokenizer, wording, text_encoder, inversions)
    filled += [_Window() for _ in range(windows - len(filled))]
    states, pooled = [], None
    for window in filled:
        tokens_1LD, pooled_1D = _encode_window(text_encoder, tokenizer, window, clip_skip, layer)
        states.append(_emphasised(tokens_1LD, [1.0, *window.weights]))
        pooled = pooled_1D if pooled is None else pooled
    return Encoded(torch.cat(states, dim=1), pooled, len(filled))


def check_clip_skip(text_encoder: Any, clip_skip: int, layer: Layer = "last") -> None:
    """Whether an encoder has that many layers to skip.

    Raises:
        BadRequest: it has not.
    """
    most = int(text_encoder.config.num_hidden_layers) - (layer == "penultimate")
    if not 1 <= clip_skip <= max(most, 1):
        raise BadRequest(f"clip_skip = {clip_skip}: this model's text encoder allows 1 to {max(most, 1)}")


def count_windows(tokenizer: Any, wording: Wording, inversions: Inversions | None = None) -> int:
    """How many windows a wording takes."""
    return len(_windows(tokenizer, wording, None, inversions))


def count_tokens(tokenizer: Any, wording: Wording, inversions: Inversions | None = None) -> tuple[int, int]:
    """(tokens used, tokens there are room for in as many windows), without starts and ends; what a page shows as 12/75."""
    filled = _windows(tokenizer, wording, None, inversions)
    room = _room(tokenizer)
    return (len(filled) - 1) * room + len(filled[-1].ids), len(filled) * room


def _room(tokenizer: Any) -> int:
    return int(tokenizer.model_max_length) - 2


def _windows(tokenizer: Any, wording: Wording, text_encoder: Any, inversions: Inversions | None) -> list[_Window]:
    """The wording's tokens in windows; at least one, and no empty one at the end."""
    room, comma = _room(tokenizer), tokenizer.get_vocab().get(",</w>")
    filled = []
    for passage in wording.passages:
        window = _Window()
        for ids, weight, vectors in _pieces(tokenizer, passage, text_encoder, inversions):
            if vectors is not None and len(ids) > room:
                raise Mismatch(f"a textual inversion of {len(ids)} vectors: this model's text encoder has room for {room}")
            if vectors is not None and len(window.ids) + len(ids) > room:
                filled.append(window)
                window = _Window()
            if vectors is not None:
                window.fixes[len(window.ids)] = vectors
            for token in ids:
                if len(window.ids) == room:
                    rest = window.split(_break(window.ids, room, comma if token != comma else None))
                    filled.append(window)
                    window = rest
                window.ids.append(token)
                window.weights.append(weight)
        filled.append(window)
    return filled


def _break(ids: Sequence[int], room: int, comma: int | None) -> int:
    """Where a full window ends: after the last comma among its last tokens, or at its end."""
    return next((i + 1 for i in range(room - 1, max(room - _BACKTRACK, 0) - 1, -1) if ids[i] == comma), room)


def _pieces(
    tokenizer: Any, passage: Sequence[Phrase], text_encoder: Any, inversions: Inversions | None
) -> list[tuple[list[int], float, Vectors | None]]:
    """(token ids, weight, embeddings that stand for them) in order."""
    pieces: list[tuple[list[int], float, Vectors | None]] = []
    width = int(text_encoder.config.hidden_size) if text_encoder is not None else None
    for phrase in passage:
        for text, vectors in inversions.find(phrase.text, width) if inversions else [(phrase.text, None)]:
            if vectors is not None:
                pieces.append(([0] * len(vectors), phrase.weight, vectors))
            elif text.strip():
                pieces.append((_ids(tokenizer, text), phrase.weight, None))
    return pieces


def _ids(tokenizer: Any, text: str) -> list[int]:
    # The tokenizer remarks on texts longer than one window, which is what windows are for.
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def input_device(text_encoder: Any) -> torch.device:
    """Where the encoder expects token ids; one that is offloaded fetches them itself, from the host."""
    device: torch.device = text_encoder.get_input_embeddings().weight.device
    return torch.device("cpu") if device.type == "meta" else device


def _encode_window(text_encoder: Any, tokenizer: Any, window: _Window, clip_skip: int, layer: Layer) -> tuple[Tensor, Tensor | None]:
    """States (1, L, D) and pooled (1, D) of one window."""
    device = input_device(text_encoder)
    length = int(tokenizer.model_max_length)
    ids = [tokenizer.bos_token_id, *window.ids, tokenizer.eos_token_id]
    used = len(ids)
    ids += [tokenizer.pad_token_id] * (length - used)
    mask = None
    if getattr(text_encoder.config, "use_attention_mask", False):
        mask = torch.tensor([[1] * used + [0] * (length - used)], device=device)
    deep = clip_skip > 1 or layer == "penultimate"
    with _embeddings_in_place(text_encoder, window.fixes):
        out = text_encoder(torch.tensor([ids], device=device), attention_mask=mask, **({"output_hidden_states": True} if deep else {}))
    pooled: Tensor | None = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    if not deep:
        return out.last_hidden_state, pooled
    if layer == "penultimate":
        return out.hidden_states[-clip_skip - 1], pooled
    norm = getattr(text_encoder, "text_model", text_encoder).final_layer_norm
    return norm(out.hidden_states[-clip_skip]), pooled


@contextmanager
def _embeddings_in_place(text_encoder: Any, fixes: Mapping[int, Vectors]) -> Iterator[None]:
    """Puts embeddings over those of the tokens that stand for them, and leaves the encoder as it was."""

    def put(_module: Any, _inputs: Any, embeddings_1LD: Tensor) -> Tensor:
        out = embeddings_1LD.clone()
        for position, vectors in fixes.items():
            start = position + 1  # after the start token
            out[0, start : start + len(vectors)] = vectors.tensor.to(out.device, out.dtype)
        return out

    if not fixes:
        yield
        return
    hook = text_encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        hook.remove()


def _emphasised(tokens_1LD: Tensor, weights: Sequence[float], *, restore_mean: bool = True) -> Tensor:
    """States times their tokens' weights, the mean restored; tokens past the last weight have weight 1."""
    if all(weight == 1.0 for weight in weights):
        return tokens_1LD
    factors = torch.ones(tokens_1LD.shape[1])
    factors[: len(weights)] = torch.tensor(list(weights)[: tokens_1LD.shape[1]])
    states = tokens_1LD.float()
    weighted = states * factors.to(states.device)[None, :, None]
    before, after = float(states.mean()), float(weighted.mean())
    if restore_mean and min(abs(before), abs(after)) > _MEAN_COUNTS * float(states.std()):
        weighted = weighted * (before / after)
    return weighted.to(tokens_1LD.dtype)


@torch.inference_mode()
def encode_t5(text_encoder: Any, tokenizer: Any, wording: Wording, *, max_length: int) -> tuple[Tensor, Tensor, str]:
    """A wording through a T5 encoder: states (1, max_length, D), mask (1, max_length) of the tokens that are words, and what did not fit.

    max_length: what the family was trained with (SD3 reads 256 tokens, FLUX dev 512, schnell 256). BREAK means nothing here. The encoder
    attends to its padding, as these families' own pipelines let it.
    """
    device = input_device(text_encoder)
    phrases = [(phrase.text, phrase.weight) for passage in wording.passages for phrase in passage]
    ids, weights = list[int](), list[float]()
    for text, weight in phrases if wording.weighted else [(wording.text, 1.0)]:
        new = _ids(tokenizer, text)
        ids += new
        weights += [weight] * len(new)
    room = max_length - 1
    dropped = str(tokenizer.decode(ids[room:], skip_special_tokens=True)).strip() if len(ids) > room else ""
    ids, weights = [*ids[:room], tokenizer.eos_token_id], weights[:room]
    mask = torch.tensor([[1] * len(ids) + [0] * (max_length - len(ids))], device=device)
    padded = torch.tensor([ids + [tokenizer.pad_token_id] * (max_length - len(ids))], device=device)
    states: Tensor = text_encoder(padded)[0]
    return _emphasised(states, weights, restore_mean=False), mask, dropped


def pad_windows(encoded: Encoded, empty: Encoded, windows: int) -> Encoded:
    """The same with more windows, those of the empty prompt, so that two prompts have equally many."""
    missing = max(windows - encoded.windows, 0)
    length = empty.tokens_1LD.shape[1] // empty.windows
    filling = [empty.tokens_1LD[:, :length]] * missing
    return Encoded(torch.cat([encoded.tokens_1LD, *filling], dim=1), encoded.pooled_1D, encoded.windows + missing)
