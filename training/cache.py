"""What frozen networks make of the dataset, computed once: rows of one shape in safetensors shards, memory-mapped, keyed by content.

A cache folder belongs to one model and one transform (its name is their digest); a row's key is the digest of what it was made from. So a
dataset that grows computes its new rows only, datasets may share a cache, and a build that was killed goes on from its last shard. Every
shard says the SHA-256 of its rows, which are held against it before a training reads them.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from core.errors import BadRequest
from core.files import publish, sha256_file, sweep_temps
from training.pairs import Source

ROWS_PER_SHARD = 512

Compute = Callable[[list[int]], Tensor]
Progress = Callable[[int, int], None]


def folder_name(kind: str, **belongs_to: Any) -> str:
    """`<kind>-<16 hex>` of everything the rows depend on besides their own content."""
    return f"{kind}-{digest(json.dumps(belongs_to, sort_keys=True, default=str))[:16]}"


def digest(text: str) -> str:
    """SHA-256 of a text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def missing(folder: Path, keys: Sequence[str]) -> list[int]:
    """Positions of the first of each of the keys that the cache has no row for. What killed builds left half-written is removed."""
    sweep_temps(folder)
    have = set(_index(folder))
    first: dict[str, int] = {}
    for position, key in enumerate(keys):
        if key not in have:
            first.setdefault(key, position)
    return list(first.values())


def build(folder: Path, keys: Sequence[str], compute: Compute, batch: int, on_progress: Progress | None = None) -> None:
    """Computes the rows of `keys` in batches and publishes them shard by shard.

    compute(positions in keys) → (len(positions), …) on any device, the same shape and dtype for every row.

    Raises:
        DiskFull: the shards published so far stay and the next call goes on from them.
    """
    for start in range(0, len(keys), ROWS_PER_SHARD):
        shard = list(range(start, min(start + ROWS_PER_SHARD, len(keys))))
        rows = torch.cat([compute(shard[first : first + batch]).cpu() for first in range(0, len(shard), batch)])
        names = " ".join(keys[position] for position in shard)
        rows = rows.contiguous()
        told = {"keys": names, "sha256": hashlib.sha256(rows.view(-1).view(torch.uint8).numpy().data).hexdigest()}
        publish(folder / f"shard-{digest(names)[:16]}.safetensors", save({"rows": rows}, metadata=told))
        if on_progress:
            on_progress(shard[-1] + 1, len(keys))


class Rows:
    """The cached rows of some keys, in their order, read from the mapped files."""

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        """Raises BadRequest if the cache lacks one of the keys."""
        index = _index(folder)
        if lacking := [key for key in keys if key not in index]:
            raise BadRequest(f"cache {str(folder)!r} lacks {len(lacking)} of {len(keys)} rows: build it again")
        self._places = [index[key] for key in keys]
        self._files: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def bytes(self) -> int:
        """What its shards take on the disk."""
        return sum(shard.stat().st_size for shard in {shard for shard, _ in self._places})

    def check(self, on_progress: Progress | None = None, *, part: int = 0, parts: int = 1) -> None:
        """Whether the shards still hold what was computed; of several processes each looks at its part of them.

        Raises:
            BadRequest: one does not.
        """
        mine = sorted({shard for shard, _ in self._places})[part::parts]
        for number, shard in enumerate(mine, 1):
            wanted = _told(shard).get("sha256")  # shards of earlier versions do not say
            if wanted and _hash_of_rows(shard) != wanted:
                raise _damaged(shard, "its rows have another SHA-256 than was written")
            if on_progress:
                on_progress(number, len(mine))

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        """The rows at these positions, (len(positions), …), as they were computed."""
        return torch.cat([self._row(*self._places[position]) for position in positions])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # mappings are opened again in each worker process

    def _row(self, shard: Path, row: int) -> Tensor:
        if shard not in self._files:
            opened: Any = safe_open(shard, "pt")
            self._files[shard] = opened.get_slice("rows")
        tensor: Tensor = self._files[shard][row : row + 1]
        return tensor


class Gathered:
    """Rows of several shapes behind one numbering: position → a row of one of the parts. What is read at once is of one part."""

    def __init__(self, parts: Sequence[tuple[Sequence[int], Rows]]) -> None:
        """parts: the positions that a part's rows stand at, in their order."""
        self._rows = [rows for _, rows in parts]
        self._places = {position: (part, row) for part, (mine, _) in enumerate(parts) for row, position in enumerate(mine)}

    def __len__(self) -> int:
        return len(self._places)

    def part(self, position: int) -> int:
        """The part that a position's row is in."""
        return self._places[position][0]

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        """The rows at these positions, (len(positions), …), as they were computed."""
        (part,) = {self.part(position) for position in positions}
        return self._rows[part][[self._places[position][1] for position in positions]]


def _index(folder: Path) -> dict[str, tuple[Path, int]]:
    """Where each key's row is: (shard, row)."""
    index: dict[str, tuple[Path, int]] = {}
    for shard in sorted(folder.glob("shard-*.safetensors")):
        index.update((key, (shard, row)) for row, key in enumerate(_told(shard)["keys"].split()))
    return index


def _told(shard: Path) -> dict[str, str]:
    """What a shard says of its rows: `keys`, `sha256`."""
    try:
        with safe_open(shard, "pt") as file:
            told = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(shard, error) from None
    if "keys" not in told:
        raise _damaged(shard, "it has no keys")
    return told


def _hash_of_rows(shard: Path) -> str:
    """SHA-256 of all that follows the header, whose length is said in the file's first eight bytes."""
    with shard.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(shard: Path, why: object) -> BadRequest:
    return BadRequest(f"cache shard {str(shard)!r} is damaged ({why}): delete it, it will be computed again")


def content_keys(sources: Sequence[Source], notes: Path) -> list[str]:
    """SHA-256 of each picture's bytes. `notes` remembers those in files whose size and time of change stayed the same."""
    try:
        known = json.loads(notes.read_text())
    except (OSError, ValueError):
        known = {}
    out, fresh, stamps = [], False, dict[Path, list[int]]()
    for source in sources:
        path = source if isinstance(source, Path) else source.path
        if path not in stamps:
            status = path.stat()
            stamps[path] = [status.st_size, status.st_mtime_ns]
        name = str(path.resolve()) + str(source)[len(str(path)) :]
        if known.get(name, [None])[:2] != stamps[path]:
            content = sha256_file(source) if isinstance(source, Path) else hashlib.sha256(source.read()).hexdigest()
            known[name], fresh = [*stamps[path], content], True
        out.append(str(known[name][2]))
    if fresh:
        publish(notes, json.dumps(known).encode())
    return out
