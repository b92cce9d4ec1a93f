"""Files that are whole or absent: written beside their place, forced to the disk, then renamed into it.

A writer holds a lock on its temporary file or folder for as long as it lives, so that `sweep_temps` can tell what a killed
process left behind from what another process is writing right now.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import BadRequest, DiskFull, LimnError

_PREFIX, _SUFFIX = ".limn-", ".tmp"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def publish(path: Path, data: bytes) -> None:
    """Write `data` to `path`, replacing what is there, so that at every moment the path holds the old bytes or the new.

    Missing parent folders are made. When this returns, the file survives a power cut.

    Raises:
        DiskFull: there is no room; nothing at `path` has changed.
        BadRequest: the place cannot be written to; nothing at `path` has changed.
    """
    with _explained(path, len(data)):
        _make_folder(path.parent)
        with _temp_file(path.parent) as (temp, descriptor):
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fsync(descriptor)
            temp.replace(path)
        _fsync_folder(path.parent)


def publish_folder(path: Path, writer: Callable[[Path], None]) -> None:
    """Let `writer` fill a temporary folder, then rename it to `path`; every file in it is on the disk before the name is.

    Raises:
        DiskFull: there is no room; nothing was published.
        BadRequest: `path` exists already, or the place cannot be written to.
        Whatever `writer` raises (an OSError as one of the two above); nothing was published.
    """
    with _explained(path):
        if path.exists() or path.is_symlink():
            raise BadRequest(f"{str(path)!r} exists already and is never overwritten: choose another name or remove it")
        _make_folder(path.parent)
        with _temp_folder(path.parent) as temp:
            writer(temp)
            _fsync_tree(temp)
            temp.rename(path)
        _fsync_folder(path.parent)


def sweep_temps(folder: Path) -> int:
    """Remove the temporary files and folders that killed processes left in `folder`; how many there were.

    What a living process is writing stays. A folder that does not exist has none.
    """
    swept = 0
    for temp in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):  # another sweeper was faster, or the file system knows no locks
            descriptor = os.open(temp, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, temp):
                    _remove(temp)
                    swept += 1
            finally:
                os.close(descriptor)
    return swept


def output_folder(folder: Path) -> Path:
    """A folder for results, made where it is missing.

    Raises:
        BadRequest: it cannot be made or written to. DiskFull: there is no room.
    """
    with _explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadRequest(f"output folder {str(folder)!r} cannot be written to: choose another, or change its rights")
    return folder


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; remembered for as long as its size and its time of change stay the same.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _sha256(path.resolve(), status.st_size, status.st_mtime_ns)


def output_name(key: str, seed: int, suffix: str = ".png") -> str:
    """A picture's file name: `limn-<12 hex>-<seed><suffix>`. It holds no user text; equal jobs give equal names.

    `key` is the job's SHA-256 in hex, `seed` the picture's own.
    """
    if not re.fullmatch(r"[0-9a-f]{12,}", key) or not re.fullmatch(r"\.[a-z0-9]{1,8}", suffix) or seed < 0:
        raise ValueError(f"an output name is made of a hex key, a seed and a suffix, not {key!r}, {seed!r}, {suffix!r}")
    return f"limn-{key[:12]}-{seed}{suffix}"


@functools.lru_cache(maxsize=4096)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _temp_file(folder: Path) -> Iterator[tuple[Path, int]]:
    """A new, locked file in `folder` and its descriptor; gone afterwards unless it was renamed."""
    while True:
        temp = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if _locked(descriptor, temp):
            break
        os.close(descriptor)
    try:
        yield temp, descriptor
    finally:
        _remove(temp)
        os.close(descriptor)


@contextlib.contextmanager
def _temp_folder(folder: Path) -> Iterator[Path]:
    """A new, locked folder in `folder`; gone afterwards unless it was renamed."""
    while True:
        temp = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
        temp.mkdir()
        try:
            descriptor = os.open(temp, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # swept before it could be locked
            continue
        if _locked(descriptor, temp):
            break
        os.close(descriptor)
    try:
        yield temp
    finally:
        _remove(temp)
        os.close(descriptor)


def _locked(descriptor: int, temp: Path) -> bool:
    """Lock the temporary; False when a sweeper took it in the moment between making and locking."""
    with contextlib.suppress(OSError):  # a file system without locks: sweep_temps leaves everything there alone
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    return _is_at(descriptor, temp)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _make_folder(folder: Path) -> None:
    """Make the folder and what is missing above it, each name forced to the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _remove(temp: Path) -> None:
    if temp.is_dir():
        shutil.rmtree(temp, ignore_errors=True)
    else:
        temp.unlink(missing_ok=True)


def _fsync_tree(folder: Path) -> None:
    for inside in folder.rglob("*"):
        if inside.is_file():
            with inside.open("rb") as file:
                os.fsync(file.fileno())
        elif inside.is_dir():
            _fsync_folder(inside)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn what the operating system says into our errors; `size` is how many bytes were to be written."""
    try:
        yield
    except LimnError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        # safetensors and torch wrap the operating system's error in one of their own.
        if number in _FULL or "No space left on device" in str(error):
            what = f" ({size / 2**20:.1f} MiB)" if size is not None else ""
            raise DiskFull(
                f"no room to write {str(path)!r}{what}: {_free(path.parent)}; free some space or choose another folder"
            ) from error
        if isinstance(error, OSError):
            reason = (error.strerror or str(error)).lower()
            if error.filename is not None and str(error.filename) != str(path) and _PREFIX not in str(error.filename):
                reason += f" ({str(error.filename)!r})"
            raise BadRequest(f"cannot write {str(path)!r}: {reason}; choose another folder") from error
        raise


def _free(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB are free in {str(folder)!r}"
