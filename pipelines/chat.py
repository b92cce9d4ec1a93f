"""Language models as text encoders: the prompt stands in a frame of words, as in a conversation, and a layer's states are read.

Axes: L tokens, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.errors import BadModel
from pipelines.checkpoint import Checkpoint
from pipelines.clip import input_device
from pipelines.prompt import Wording

_PROMPT = "\x00prompt\x00"


@torch.inference_mode()
def encode_chat(
    text_encoder: Any, tokenizer: Any, wording: Wording, frame: tuple[str, str], *, layer: int, limit: int
) -> tuple[Tensor, int, str]:
    """A wording between the words before and after it: states (1, L, D) of all tokens, how many stand before it, and what did not fit.

    layer: −1 the last, with its norm; −2 the one before. limit: the most tokens after those before the prompt, the frame's end included,
    which gives way first. A weight multiplies its tokens' states; BREAK means nothing here.
    """
    before, after = (_ids(tokenizer, words) for words in frame)
    weights: list[float] = []
    if wording.weighted:
        ids = list(before)
        for i, passage in enumerate(wording.passages):
            for j, phrase in enumerate(passage):
                new = _ids(tokenizer, f" {phrase.text}" if i and not j else phrase.text)  # apart, as in `Wording.text`
                ids += new
                weights += [phrase.weight] * len(new)
        ids += after
    else:  # in one piece, as it is read without any syntax
        ids = _ids(tokenizer, frame[0] + wording.text + frame[1])
    most = len(before) + limit
    dropped = str(tokenizer.decode(ids[most : len(ids) - len(after)])).strip() if len(ids) - len(after) > most else ""
    ids = ids[:most]
    device = input_device(text_encoder)
    tokens = torch.tensor([ids], device=device)
    few = {"logits_to_keep": 1} if hasattr(text_encoder, "lm_head") else {}  # nobody asks for the next word
    out = text_encoder(input_ids=tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True, **few)
    states: Tensor = out.hidden_states[layer]
    return _weighted(states, len(before), weights), len(before), dropped


def chat_frame(tokenizer: Any, checkpoint: Checkpoint, **options: Any) -> tuple[str, str]:
    """What the tokenizer's own chat template puts before and after a user's words.

    Raises:
        BadModel: it has none, or one that changes the words.
    """
    where = f"tokenizer of {str(checkpoint.path)!r}"
    if not getattr(tokenizer, "chat_template", None):
        raise BadModel(f"{where} has no chat template: fetch the model again, with tokenizer_config.json or chat_template.jinja")
    messages = [{"role": "user", "content": _PROMPT}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options))
    before, found, after = text.partition(_PROMPT)
    if not found:
        raise BadModel(f"{where} has a chat template that leaves out what the user says: fetch the model again")
    return before, after


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False).input_ids)


def _weighted(states_1LD: Tensor, start: int, weights: Sequence[float]) -> Tensor:
    if all(weight == 1.0 for weight in weights):
        return states_1LD
    factors = states_1LD.new_ones(states_1LD.shape[1])
    fitting = list(weights)[: len(factors) - start]
    factors[start : start + len(fitting)] = torch.tensor(fitting).to(factors)
    return states_1LD * factors[None, :, None]
