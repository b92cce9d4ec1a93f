"""What stays the same at every step, computed once: moments of pictures, embeddings of captions, conditions that are extracted.

Every process of a run calls these together, each computes its share, and all read all. Rows belong to the networks and the transform they
were made with (`training.cache`), so a changed picture, caption, size or setting is computed anew and nothing else is.
"""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from core.files import publish, sha256_file
from pipelines.images import picture_to_tensor
from training import cache
from training.buckets import Size, bucket_sizes, nearest
from training.data import Loader
from training.pairs import DataConfig, Pair, Source, load
from training.progress import counting

Say = Callable[[str], None]
TIMED = 4  # rows of a cache that are timed before the rest is announced


def sizes_of(config: DataConfig, pairs: Sequence[Pair], notes: Path) -> dict[Source, Size]:
    """The bucket of every picture, by its proportions; `notes` remembers the pictures' sizes. Nothing where there are no buckets."""
    if not config.buckets:
        return {}
    buckets = bucket_sizes(config.width, config.height, config.buckets)
    try:
        known = json.loads(notes.read_text())
    except (OSError, ValueError):
        known = {}
    keys = dict(zip((pair.picture for pair in pairs), cache.content_keys([pair.picture for pair in pairs], notes), strict=True))
    fresh = {}
    for source, content in keys.items():
        if f"size {content}" not in known:
            height, width, _ = load(source).shape
            fresh[f"size {content}"] = [width, height]
    if fresh:
        publish(notes, json.dumps(json.loads(notes.read_text()) | fresh).encode())
        known |= fresh
    return {source: nearest(buckets, *known[f"size {content}"]) for source, content in keys.items()}


def texts(folder: Path, captions: Sequence[str], encode: Callable[[Sequence[str]], Tensor], belongs_to: dict[str, Any]) -> cache.Rows:
    """A row (L, D) for each caption; equal captions share one."""
    keys = [cache.digest(caption) for caption in captions]
    state = PartialState()
    return _cached(folder / cache.folder_name("text", **belongs_to), keys, lambda rows: encode([captions[row] for row in rows]), 64, state)


def moments(folder: Path, pairs: Sequence[Pair], loader: Loader, vae: Any, belongs_to: dict[str, Any], batch: int) -> cache.Gathered:
    """Mean and log-variance (2·C, h, w) of every pair's picture, rows of one size together."""
    state = PartialState()
    contents = _contents(folder, pairs, state)

    @torch.no_grad()
    def compute(rows: list[int]) -> Tensor:
        pixels = torch.stack([picture_to_tensor(loader.picture(pairs[row])) for row in rows]).to(vae.device)
        found: Tensor = vae.encode(pixels).latent_dist.parameters
        return found

    def rows_of(size: Size, mine: list[int]) -> cache.Rows:
        name = cache.folder_name("moments", **belongs_to, size=size, fit="crop")
        keys = [contents[row] + "-mirrored" * pairs[row].mirrored for row in mine]
        return _cached(folder / name, keys, lambda rows: compute([mine[row] for row in rows]), batch, state)

    return _by_size(pairs, loader, rows_of)


def conditions(folder: Path, pairs: Sequence[Pair], loader: Loader) -> cache.Gathered:
    """The conditions that are extracted from pictures, uint8 (H, W, 3) rows."""
    state = PartialState()
    contents = _contents(folder, pairs, state)
    assert loader.control is not None
    kind = loader.control.name

    def compute(rows: list[int]) -> Tensor:
        return torch.stack([torch.from_numpy(loader.condition(pairs[row])) for row in rows])

    def rows_of(size: Size, mine: list[int]) -> cache.Rows:
        keys = [
            f"{contents[row]}-{cache.digest(loader.params(pairs[row]).model_dump_json())[:16]}{'-mirrored' * pairs[row].mirrored}"
            for row in mine
        ]
        name = cache.folder_name("condition", control=kind, size=size)
        return _cached(folder / name, keys, lambda rows: compute([mine[row] for row in rows]), 16, state)

    return _by_size(pairs, loader, rows_of)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a part."""
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _contents(folder: Path, pairs: Sequence[Pair], state: PartialState) -> list[str]:
    with state.main_process_first():
        return cache.content_keys([pair.picture for pair in pairs], folder / "contents.json")


def _by_size(pairs: Sequence[Pair], loader: Loader, rows_of: Callable[[Size, list[int]], cache.Rows]) -> cache.Gathered:
    groups: dict[Size, list[int]] = {}
    for position, pair in enumerate(pairs):
        groups.setdefault(loader.size(pair), []).append(position)
    return cache.Gathered([(mine, rows_of(size, mine)) for size, mine in groups.items()])


def _cached(folder: Path, keys: list[str], compute: cache.Compute, batch: int, state: PartialState) -> cache.Rows:
    """The rows of `keys`, those that are missing computed by all processes together, after saying how long and how large."""
    todo = cache.missing(folder, keys)
    state.wait_for_everyone()  # nobody publishes before everybody has seen the same gaps
    mine = todo[state.process_index :: state.num_processes]
    if mine:
        kind = folder.name.partition("-")[0]
        if state.is_main_process and len(mine) > TIMED:
            _announce(kind, len(todo), len(mine), lambda: compute(mine[:TIMED]))
        with counting(f"caching {kind}", len(mine), quiet=not state.is_main_process) as progress:
            cache.build(folder, [keys[row] for row in mine], lambda rows: compute([mine[row] for row in rows]), batch, progress)
    state.wait_for_everyone()
    return cache.Rows(folder, keys)


def _announce(kind: str, rows: int, mine: int, sample: Callable[[], Tensor]) -> None:
    """What a cache will take, from a few of its rows. A cache that is done at once is not announced."""
    began = time.monotonic()
    found = sample()
    seconds = (time.monotonic() - began) / len(found) * mine
    if seconds > 5:
        size = rows * found[0].numel() * found.element_size() / 2**20
        print(f"caching {kind}: {rows} rows, about {seconds / 60:.1f} minutes and {size:.0f} MiB", flush=True)
