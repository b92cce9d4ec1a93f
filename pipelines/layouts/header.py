"""What a weight file (safetensors, or GGUF) says of itself without its tensors being read: names, shapes, bytes, metadata."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import BadModel
from pipelines.layouts.scaled import Scales
from pipelines.loading import check_safetensors

Shape = tuple[int, ...]
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, eq=False)
class Header:
    """shapes: of every tensor by name; dtypes: as safetensors writes them ("F16"); metadata: what else is said; scales: of 8 bits."""

    path: Path
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]
    scales: Scales = Scales.NONE

    @classmethod
    def read(cls, path: Path) -> "Header":
        """
        Raises:
            BadModel: the file is missing, damaged, cut short, or neither safetensors nor GGUF.
        """
        from pipelines.layouts.gguf import GgufHeader, is_gguf

        if is_gguf(path):
            return GgufHeader.read(path)
        check_safetensors(path)  # after this the JSON is whole and the shapes fit the file's length
        with path.open("rb") as file:
            values: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        metadata = values.pop("__metadata__", None) or {}
        shapes = {name: tuple(int(size) for size in entry["shape"]) for name, entry in values.items()}
        odd = next((name for name, shape in shapes.items() if len(shape) > _MAX_DIMENSIONS), None)
        if odd is not None:
            raise BadModel(
                f"weights {str(path)!r} are damaged: tensor {odd[:60]!r} has {len(shapes[odd])} dimensions; fetch the file again"
            )
        dtypes = {name: str(entry["dtype"]) for name, entry in values.items()}
        scales = Scales.find(path, dtypes)
        return cls(path, {name: shape for name, shape in shapes.items() if name not in scales.aside}, dtypes, metadata, scales)

    @cached_property
    def parameters(self) -> int:
        """How many numbers the file holds."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def has(self, prefix: str) -> bool:
        """Whether some tensor's name begins so."""
        return any(name.startswith(prefix) for name in self.shapes)

    def under(self, prefix: str) -> dict[str, Shape]:
        """Shapes of the tensors whose names begin so, by the rest of their names."""
        return {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Some of the tensors under new names; names: new to the file's."""
        from safetensors import safe_open

        with safe_open(self.path, "pt") as opened:
            return {new: self.scales.apply(name, opened.get_tensor(name), opened) for new, name in names.items()}


def count(names: Mapping[str, Any], pattern: str) -> int:
    """How many numbers stand in place of the `*` in names that begin like the pattern: count(names, "down_blocks.*.") is 4."""
    before, after = pattern.split("*")
    found = set()
    for name in names:
        if name.startswith(before):
            number, dot, rest = name[len(before) :].partition(".")
            if number.isdigit() and (dot + rest).startswith(after):
                found.add(number)
    return len(found)
