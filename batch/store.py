"""Where a batch's files go: a folder here, or an fsspec URL (`s3://bucket/run`). Either way a file is whole or absent.

Names are relative, with `/`. Pictures lie at the top and in folders of the input's; `failed/` holds a JSON file for each job that failed,
`rejected/` the candidates that were not kept.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from core.errors import BadRequest, DiskFull, LimnError
from core.files import output_folder, publish, sweep_temps

FAILED, REJECTED, JOURNAL, REPORT, LOCK = "failed", "rejected", "journal.jsonl", "report.html", "batch.lock"
_OWN: Final = (FAILED, REJECTED)
_PICTURE: Final = re.compile(r"(^|/)limn-[0-9a-f]{12}-[0-9]+\.png$")


class Store(Protocol):
    """A place for files."""

    @property
    def shown(self) -> str:
        """The place as people write it."""
        ...

    def publish(self, name: str, data: bytes) -> None:
        """Put a file there, whole, in one step, over what is there.

        Raises:
            DiskFull, BadRequest: it cannot be done; nothing has changed.
        """
        ...

    def read(self, name: str) -> bytes | None:
        """A file's bytes, or None where there is none."""
        ...

    def remove(self, name: str) -> None:
        """Take a file away, if it is there."""
        ...

    def names(self) -> set[str]:
        """Every file there is, without those that are still being written."""
        ...

    def free_bytes(self) -> int | None:
        """The room that is left, where that can be known."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder of this machine's, or one that several share."""

    path: Path

    @property
    def shown(self) -> str:
        return str(self.path)

    def publish(self, name: str, data: bytes) -> None:
        publish(self.path / name, data)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def names(self) -> set[str]:
        return set(_files(self.path, ""))

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self.path).free

    def sweep(self) -> int:
        """Remove what killed processes were writing; how many files that were."""
        folders = [self.path, *(Path(root) for root, _, _ in os.walk(self.path) if Path(root) != self.path)]
        return sum(sweep_temps(folder) for folder in folders)


@dataclass(frozen=True)
class Remote:
    """A place that fsspec knows; an object store publishes a file when its last byte has come.

    Every file system there raises errors of its own library, so whatever comes is told as ours, with its cause.
    """

    url: str

    @property
    def shown(self) -> str:
        return self.url

    def publish(self, name: str, data: bytes) -> None:
        system, root = self._open()
        try:
            system.pipe_file(f"{root}/{name}", data)
        except Exception as error:
            raise self._explained(error, f"cannot write {name!r}") from error

    def read(self, name: str) -> bytes | None:
        system, root = self._open()
        try:
            return bytes(system.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._explained(error, f"cannot read {name!r}") from error

    def remove(self, name: str) -> None:
        system, root = self._open()
        try:
            system.rm_file(f"{root}/{name}")
        except FileNotFoundError:
            pass
        except Exception as error:
            raise self._explained(error, f"cannot remove {name!r}") from error

    def names(self) -> set[str]:
        system, root = self._open()
        try:
            system.invalidate_cache()
            return {str(path).removeprefix(root).lstrip("/") for path in system.find(root)}
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise self._explained(error, "cannot be listed") from error

    def free_bytes(self) -> int | None:
        return None

    def _open(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise BadRequest(f"output {self.url!r} cannot be opened ({error}): install limn[cluster], or give a folder") from None
        return system, str(root).rstrip("/")

    def _explained(self, error: Exception, what: str) -> LimnError:
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = DiskFull if "No space left" in reason else BadRequest
        return kind(f"output {self.url!r}: {what} ({reason[:200]}); check the address and the rights to it")


def open_store(out: str | Path) -> Store:
    """The store that `--out` names; a folder is made.

    Raises:
        BadRequest: the folder cannot be made or written to.
    """
    if "://" in str(out):
        return Remote(str(out).rstrip("/"))
    return Folder(output_folder(Path(out)))


def pictures(names: set[str]) -> set[str]:
    """Of a store's files the finished pictures of ours."""
    return {name for name in names if _PICTURE.search(name) and name.partition("/")[0] not in _OWN}


def failure_name(name: str) -> str:
    """Where it is written why the picture `name` was not made."""
    return f"{FAILED}/{name.rpartition('/')[2].removesuffix('.png')}.json"


def read_failures(store: Store, names: set[str]) -> dict[str, dict[str, Any]]:
    """What is written about every job that failed, by its key."""
    found = {}
    for name in sorted(names):
        if name.startswith(f"{FAILED}/") and (data := store.read(name)) is not None:
            try:
                values = json.loads(data)
                found[str(values["key"])] = values
            except (ValueError, KeyError, TypeError):
                continue  # not ours
    return found


def _files(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}"
