"""CLIP's tokenizer, which every Stable Diffusion and FLUX model reads its prompt with, from OpenAI's merges (LICENSE-CLIP)."""

import gzip
from functools import cache
from pathlib import Path
from typing import Any

_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
TOKENS, LENGTH = 49408, 77


@cache
def _table() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(the number of each token, the merges in their order)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    merges = [(first, second) for first, second in (line.split() for line in gzip.decompress(_MERGES.read_bytes()).decode().splitlines())]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges


def clip_tokenizer(kind: Any, pad_token: str) -> Any:
    """CLIP's tokenizer. kind: its class in transformers; pad_token: OpenAI's models pad with "<|endoftext|>", OpenCLIP's with "!"."""
    numbers, merges = _table()
    return kind(vocab=dict(numbers), merges=list(merges), model_max_length=LENGTH, pad_token=pad_token)
