"""Textual inversions: words whose embeddings come from a file.

Neither tokenizer nor encoder is changed: the words are found in the prompt, and their vectors are put over the embeddings of placeholder
tokens while that prompt is encoded (`pipelines/clip.py`). A prompt that names none is encoded as if there were none. Forms that are read,
all safetensors: A1111's `emb_params`, SDXL's `clip_l` and `clip_g`, and diffusers' `<token>`. A word is the file's name, or the token in
it.
Source: Gal et al., An Image is Worth One Word, 2022.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from core.errors import BadModel, Mismatch

_PICKLES = (".pt", ".bin", ".ckpt", ".pth")


@dataclass(frozen=True, eq=False)
class Vectors:
    """What stands for a word in one encoder: as many tokens as there are rows (N, D)."""

    tensor: Tensor

    def __len__(self) -> int:
        return int(self.tensor.shape[0])


@dataclass(frozen=True, eq=False)
class Inversion:
    """One file. tensors: its vectors (N, D), one for each text encoder it was trained for."""

    path: Path
    words: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    @property
    def widths(self) -> list[int]:
        """Widths of the text encoders it is for."""
        return [int(tensor.shape[1]) for tensor in self.tensors]


class Inversions:
    """The inversions that prompts may name. Immutable, and equal only to itself, so that encoded prompts can be cached by it."""

    def __init__(self, inversions: Sequence[Inversion]) -> None:
        self._by_word = {word.lower(): inversion for inversion in inversions for word in inversion.words}
        # The longest first, or "style" would be found in "style-2". Words of letters end where letters end.
        names = sorted(self._by_word, key=len, reverse=True)
        self._pattern = re.compile("|".join(rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in names), re.I) if names else None

    @property
    def words(self) -> list[str]:
        """Every word that can be used in a prompt, in lower case."""
        return sorted(self._by_word)

    def used(self, text: str) -> list[Inversion]:
        """The inversions that a text names, each once."""
        found = self._pattern.findall(text) if self._pattern else []
        return list(dict.fromkeys(self._by_word[word.lower()] for word in found))

    def find(self, text: str, width: int | None) -> list[tuple[str, Vectors | None]]:
        """The text in pieces, with vectors where a piece is a word of an inversion.

        width: the text encoder's; without it the vectors are the first there are, which is enough to count them.

        Raises:
            Mismatch: the word's vectors are for encoders of other widths.
        """
        pieces: list[tuple[str, Vectors | None]] = []
        end = 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            pieces += [(text[end : match.start()], None), (match[0], _vectors(self._by_word[match[0].lower()], width))]
            end = match.end()
        return [*pieces, (text[end:], None)]


def _vectors(inversion: Inversion, width: int | None) -> Vectors:
    for tensor in inversion.tensors:
        if width is None or tensor.shape[1] == width:
            return Vectors(tensor)
    raise Mismatch(
        f"textual inversion {inversion.path.name!r} is for text encoders of width {' and '.join(map(str, inversion.widths))}, "
        f"this model has one of width {width}: use one trained for this model, or take {inversion.words[0]!r} out of the prompt"
    )


def load_inversions(*places: Path) -> Inversions:
    """All inversions in files and folders; folders are searched to the bottom, in order of name.

    Raises:
        BadModel: a place is missing, a file is damaged, holds no embedding, or is a pickle.
    """
    found = []
    for place in places:
        if not place.exists():
            raise BadModel(f"no textual inversion at {str(place)!r}: give a .safetensors file or a folder of them")
        files = sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]
        found += [load_inversion(file) for file in files]
    return Inversions(found)


def load_inversion(file: Path) -> Inversion:
    """One file.

    Raises:
        BadModel: it is damaged, holds no embedding, or is a pickle.
    """
    if file.suffix.lower() in _PICKLES:
        raise BadModel(
            f"textual inversion {file.name!r} is a pickle, which can run any program when it is read: convert it elsewhere with torch.load "
            "and safetensors.torch.save_file"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise BadModel(f"textual inversion {str(file)!r} cannot be read: {error}; download it again") from None
    tensors = {key: tensor[None] if tensor.ndim == 1 else tensor for key, tensor in tensors.items()}
    if not tensors or any(tensor.ndim != 2 or not tensor.is_floating_point() or not len(tensor) for tensor in tensors.values()):
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in list(tensors.items())[:3])
        raise BadModel(f"{file.name!r} is no textual inversion: it holds {shapes or 'nothing'}; expected rows of embeddings")
    if tensors.keys() <= {"emb_params", "clip_l", "clip_g"}:
        return Inversion(file, (file.stem,), tuple(tensors.values()))
    if len(tensors) > 1:
        raise BadModel(f"{file.name!r} is no textual inversion: it holds {len(tensors)} tensors; expected one embedding to a file")
    ((token, tensor),) = tensors.items()
    return Inversion(file, (file.stem,) if token == file.stem else (file.stem, token), (tensor,))
