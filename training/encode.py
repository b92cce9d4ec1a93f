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
from pipelines.family import Family
from pipelines.images import picture_to_tensor
from pipelines.memory import explained
from training import cache
from training.buckets import CELL_PX, Size, bucket_levels, fitting
from training.data import Loader
from training.pairs import DataConfig, Pair, Source, load
from training.progress import counting

Say = Callable[[str], None]
TIMED = 4  # rows of a cache that are timed before the rest is announced
SAID_FROM = 2**30  # bytes of a cache, below which nobody waits for its check


def originals(pairs: Sequence[Pair], notes: Path) -> dict[Source, Size]:
    """The width and height of every picture as it is on the disk; `notes` remembers them."""
    sources = list(dict.fromkeys(pair.picture for pair in pairs))
    with PartialState().main_process_first():
        keys = cache.content_keys(sources, notes)
        known = json.loads(notes.read_text())
        fresh = {}
        for source, content in zip(sources, keys, strict=True):
            if f"size {content}" not in known:
                height, width, _ = load(source).shape
                fresh[f"size {content}"] = [width, height]
        if fresh:
            known |= fresh
            publish(notes, json.dumps(known).encode())
    return {source: (known[f"size {content}"][0], known[f"size {content}"][1]) for source, content in zip(sources, keys, strict=True)}


def sizes_of(config: DataConfig, pairs: Sequence[Pair], notes: Path, cell_px: Callable[[], int] = lambda: CELL_PX) -> dict[Source, Size]:
    """The size of every picture that is not trained at the config's own: by its proportions, and by how large it is.

    cell_px: what the base draws multiples of; asked for where it matters.
    """
    if not config.buckets and config.scales == (1.0,):
        return {}
    levels = bucket_levels((config.width, config.height), config.buckets, config.scales, cell_px())
    return {source: fitting(levels, *size) for source, size in originals(pairs, notes).items()}


def check(folder: Path, pairs: Sequence[Pair], loader: Loader) -> None:
    """Looks at every pair that has not been looked at with these very files: what does not fit is found now, not when training comes to it.

    The pairs that were fine are remembered in `folder`, whatever is cached of their pictures.

    Raises:
        BadImage, Mismatch: as `Loader.check_pair`.
    """
    state, notes = PartialState(), folder / "checked.json"
    whole = {pair.sources: pair for pair in pairs}  # crops and mirrored pairs have the same files
    sources = [source for files in whole for source in files]
    with state.main_process_first():
        contents = dict(zip(sources, cache.content_keys(sources, folder / "contents.json"), strict=True))
        try:
            known = set(json.loads(notes.read_text()))
        except (OSError, ValueError):
            known = set()
    mirrored = [f"mirrored {loader.kind}"] * loader.config.flip
    keys = {cache.digest(" ".join([*(contents[source] for source in files), *mirrored])): pair for files, pair in whole.items()}
    todo = [pair for key, pair in keys.items() if key not in known]
    mine = todo[state.process_index :: state.num_processes]
    if mine:
        with counting("looking at pairs", len(mine), quiet=not state.is_main_process) as progress:
            for number, pair in enumerate(mine, 1):
                loader.check_pair(pair)
                progress(number, len(mine))
    state.wait_for_everyone()
    if todo and state.is_main_process:
        publish(notes, json.dumps(sorted(known | keys.keys())).encode())


def texts(folder: Path, captions: Sequence[str], encode: Callable[[Sequence[str]], Tensor], belongs_to: dict[str, Any]) -> cache.Rows:
    """A row (L, D) for each caption; equal captions share one."""
    keys = [cache.digest(caption) for caption in captions]
    state = PartialState()
    return _cached(folder / cache.folder_name("text", **belongs_to), keys, lambda rows: encode([captions[row] for row in rows]), 64, state)


def moments(folder: Path, pairs: Sequence[Pair], loader: Loader, vae: Any, belongs_to: dict[str, Any], *, batch: int) -> cache.Gathered:
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
        keys = [contents[row] + loader.view(pairs[row]) for row in mine]
        return _cached(folder / name, keys, lambda rows: compute([mine[row] for row in rows]), batch, state)

    return _by_size(pairs, loader, rows_of)


def conditions(folder: Path, pairs: Sequence[Pair], loader: Loader) -> cache.Gathered:
    """The conditions that are extracted from pictures, uint8 (H, W, C) rows."""
    state = PartialState()
    contents = _contents(folder, pairs, state)
    kind = "+".join(control.name for control in loader.controls if control is not None)

    def compute(rows: list[int]) -> Tensor:
        return torch.stack([torch.from_numpy(loader.condition(pairs[row])) for row in rows])

    def rows_of(size: Size, mine: list[int]) -> cache.Rows:
        keys = [f"{contents[row]}-{loader.recipe(pairs[row])}{loader.view(pairs[row])}" for row in mine]
        name = cache.folder_name("condition", control=kind, size=size, **loader.stacking)
        return _cached(folder / name, keys, lambda rows: compute([mine[row] for row in rows]), 16, state)

    return _by_size(pairs, loader, rows_of)


def latents(
    folder: Path, pairs: Sequence[Pair], loader: Loader, encode: Callable[[Any], Tensor], belongs_to: dict[str, Any]
) -> cache.Gathered:
    """The latents (C, h, w) of every pair's condition, for networks that read those; they are not sampled, in rendering neither."""
    state = PartialState()
    with state.main_process_first():
        found = [cache.content_keys(sources, folder / "contents.json") for sources in zip(*map(_read_for, pairs), strict=True)]
    contents = ["+".join(keys) for keys in zip(*found, strict=True)]

    def rows_of(size: Size, mine: list[int]) -> cache.Rows:
        keys = [f"{contents[row]}-{loader.recipe(pairs[row])}{loader.view(pairs[row])}" for row in mine]
        kind = "+".join(control.name if control else "" for control in loader.controls)
        name = cache.folder_name("hints", **belongs_to, control=kind, size=size)

        def compute(rows: list[int]) -> Tensor:
            return torch.stack([encode(loader.condition(pairs[mine[row]])) for row in rows])

        return _cached(folder / name, keys, compute, 8, state)

    return _by_size(pairs, loader, rows_of)


def files_of(base: Family, part: str) -> dict[str, str]:
    """SHA-256 of every file that a part of the base was loaded from."""
    folder = base.checkpoint.path / part
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [base.checkpoint.path]
    return {path.name: sha256_file(path) for path in files}


def _read_for(pair: Pair) -> tuple[Source, ...]:
    """What the pair's condition is made from."""
    return pair.conditions or (pair.picture,)


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
    kind, main = folder.name.partition("-")[0], state.is_main_process
    todo = cache.missing(folder, keys)
    state.wait_for_everyone()  # nobody publishes before everybody has seen the same gaps
    mine = todo[state.process_index :: state.num_processes]
    if mine:
        remedy = f"set cache_batch={batch // 2}" if kind == "moments" and batch > 1 else "set a smaller data.width and data.height"
        memory = explained(f"on {state.device.type} to cache {kind} in batches of {batch}", remedy)
        with memory, counting(f"caching {kind}", len(mine), quiet=not main) as progress:
            if main and len(mine) > TIMED:
                _announce(kind, len(todo), len(mine), lambda: compute(mine[:TIMED]))
            cache.build(folder, [keys[row] for row in mine], lambda rows: compute([mine[row] for row in rows]), batch, progress)
    state.wait_for_everyone()
    rows = cache.Rows(folder, keys)
    with counting(f"checking {kind}, shard", len(keys), quiet=not main or rows.bytes < SAID_FROM) as progress:
        rows.check(progress, part=state.process_index, parts=state.num_processes)
    state.wait_for_everyone()
    return rows


def _announce(kind: str, rows: int, mine: int, sample: Callable[[], Tensor]) -> None:
    """What a cache will take, from a few of its rows. A cache that is done at once is not announced."""
    began = time.monotonic()
    found = sample()
    seconds = (time.monotonic() - began) / len(found) * mine
    if seconds > 5:
        size = rows * found[0].numel() * found.element_size() / 2**20
        print(f"caching {kind}: {rows} rows, about {seconds / 60:.1f} minutes and {size:.0f} MiB", flush=True)
