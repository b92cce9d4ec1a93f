"""Rows are computed once, survive a cut build, and come back as they were."""

import multiprocessing
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import BadRequest
from training import cache
from training.cache import Rows, build, content_keys, folder_name, missing


class Source:
    """Rows that depend on their key, and a count of how often each was computed."""

    def __init__(self, keys: list[str], stop_after: int = 10**9) -> None:
        self.keys, self.stop_after, self.computed = keys, stop_after, list[str]()

    def __call__(self, positions: list[int]) -> Tensor:
        names = [self.keys[position] for position in positions]
        if len(self.computed) + len(names) > self.stop_after:
            raise KeyboardInterrupt
        self.computed += names
        return torch.stack([row(name) for name in names])


def row(key: str) -> Tensor:
    return torch.randn(2, 3, generator=torch.Generator().manual_seed(int(key[1:])))


def fill(folder: Path, keys: list[str], source: Source | None = None) -> Source:
    todo = [keys[position] for position in missing(folder, keys)]
    source = source or Source(todo)
    source.keys = todo
    build(folder, todo, source, batch=3)
    return source


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "ROWS_PER_SHARD", 4)


KEYS = [f"k{index}" for index in range(11)]


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    asked = [KEYS[3], KEYS[0], KEYS[3], *KEYS[5:]]
    source = fill(tmp_path, asked)
    assert sorted(source.computed) == sorted(set(asked))  # repeated keys are computed once
    rows = Rows(tmp_path, asked)
    assert len(rows) == len(asked)
    assert torch.equal(rows[[2, 0, 8, 1]], torch.stack([row(asked[position]) for position in (2, 0, 8, 1)]))


def test_a_build_that_was_cut_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill(tmp_path, KEYS, Source([], stop_after=9))
    with pytest.raises(BadRequest, match="lacks 3 of 11 rows"):
        Rows(tmp_path, KEYS)
    assert fill(tmp_path, KEYS).computed == KEYS[8:]
    assert not fill(tmp_path, KEYS).computed
    assert torch.equal(Rows(tmp_path, KEYS)[list(range(11))], torch.stack([row(key) for key in KEYS]))


def test_a_dataset_that_grew_computes_its_new_rows(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:6])
    assert fill(tmp_path, [KEYS[8], *KEYS[:7]]).computed == [KEYS[8], KEYS[6]]


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    fill(tmp_path, KEYS[:2])
    (shard,) = tmp_path.glob("shard-*")
    shard.write_bytes(shard.read_bytes()[:20])
    with pytest.raises(BadRequest, match=r"damaged .*: delete it"):
        missing(tmp_path, KEYS)


def test_rows_travel_to_other_processes(tmp_path: Path) -> None:
    fill(tmp_path, KEYS)
    rows = Rows(tmp_path, KEYS)
    rows[[0]]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(rows.__getitem__, ([10, 1],))
    assert torch.equal(there, rows[[10, 1]])
    assert len(pickle.dumps(rows)) < 5000  # places, not rows


def test_names_depend_on_all_that_the_rows_depend_on() -> None:
    assert folder_name("moments", size=(64, 64), encoder={"a": "1"}) == folder_name("moments", encoder={"a": "1"}, size=(64, 64))
    assert folder_name("moments", size=(64, 64)) != folder_name("moments", size=(64, 72))


def test_content_keys_follow_the_bytes_not_the_name(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, text in zip(paths, ("one", "two", "one"), strict=True):
        path.write_text(text)
    notes = tmp_path / "notes" / "contents.json"
    first = content_keys(paths, notes)
    assert first[0] == first[2] != first[1]
    stamp = notes.stat().st_mtime_ns
    assert content_keys(paths, notes) == first
    assert notes.stat().st_mtime_ns == stamp  # nothing was read or written again
    paths[0].write_text("three")
    assert content_keys(paths, notes)[0] != first[0]
    notes.write_text("{")
    assert content_keys(paths, notes)[1:] == first[1:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_flipped_bit_is_found_before_the_rows_are_used(tmp_path: Path, dtype: torch.dtype) -> None:
    build(tmp_path, KEYS, lambda positions: torch.stack([row(KEYS[position]) * 50 for position in positions]).to(dtype), batch=3)
    rows = Rows(tmp_path, KEYS)
    seen: list[tuple[int, int]] = []
    rows.check(lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    shard = sorted(tmp_path.glob("shard-*"))[1]
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    with pytest.raises(BadRequest, match=rf"{shard.name}' is damaged \(.*SHA-256.*\): delete it"):
        Rows(tmp_path, KEYS).check()
    Rows(tmp_path, KEYS).check(part=0, parts=2)  # it is another process' part
    with pytest.raises(BadRequest, match="SHA-256"):
        Rows(tmp_path, KEYS).check(part=1, parts=2)


def test_a_cache_of_an_earlier_version_is_still_read(tmp_path: Path) -> None:
    save_file(
        {"rows": torch.stack([row(key) for key in KEYS[:4]])}, tmp_path / "shard-0.safetensors", metadata={"keys": " ".join(KEYS[:4])}
    )
    rows = Rows(tmp_path, KEYS[:4])
    rows.check()
    assert torch.equal(rows[[2]][0], row(KEYS[2]))
