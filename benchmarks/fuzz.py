"""Damaged files through every door that takes files: what comes of them, and how long the slowest takes.

    python benchmarks/fuzz.py [--count 10000] [--seed 2026]

Pictures (PNG, JPEG and WebP in several kinds) go through `core.images.decode`; depth files, OpenPose's JSON and ONNX headers, a tenth as
many, through their readers. Bytes are changed, cut out, doubled and spliced, mostly near the beginning, where the headers are. Exit code 1
if anything but the reader's own error comes out, or one file takes more than 250 ms of processor time.
"""

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, where a module is called as our package is

from controls.depthfile import is_depth_file, read_depth
from controls.onnxfile import input_size
from core.errors import BadImage, BadRequest
from core.images import decode
from core.openpose import People, openpose_from_people, people_from_openpose

SLOWEST_MS = 250.0
SPLICE = 16


def seeds_of_pictures(rng: np.random.Generator) -> list[bytes]:
    """Small pictures of every kind that is decoded."""
    tiles_HWC = np.repeat(np.repeat(rng.integers(0, 256, (4, 6, 3), np.uint8), 8, axis=0), 8, axis=1)
    rgb, alpha_HWC = PIL.Image.fromarray(tiles_HWC), np.dstack([tiles_HWC, tiles_HWC[..., :1]])
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    images: list[tuple[PIL.Image.Image, str, dict[str, Any]]] = [
        (rgb, "PNG", {"exif": exif}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (PIL.Image.fromarray(tiles_HWC[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (PIL.Image.fromarray(alpha_HWC), "PNG", {}),
        (rgb.convert("1"), "PNG", {}),
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("L"), "JPEG", {}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb, "WEBP", {"exif": exif}),
        (PIL.Image.fromarray(alpha_HWC), "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": [PIL.Image.new("RGB", rgb.size)]}),
    ]
    return [saved(image, kind, options) for image, kind, options in images]


def saved(image: PIL.Image.Image, kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seeds_of_depth(rng: np.random.Generator) -> list[bytes]:
    """The two formats of depth files."""
    file = io.BytesIO()
    np.save(file, rng.random((24, 32), np.float32))
    return [file.getvalue(), saved(PIL.Image.fromarray(rng.integers(0, 65536, (24, 32), np.uint16)), "PNG", {})]


def seed_of_onnx() -> bytes:
    """The least of an ONNX file that says how large its input is."""

    def message(field: int, body: bytes) -> bytes:
        return bytes([field << 3 | 2, len(body)]) + body

    shape = b"".join(message(1, bytes([8, side])) for side in (1, 3, 96, 64))
    tensor = message(1, bytes([8, 1]) + message(2, shape))
    return bytes([8, 8]) + message(7, message(2, b"graph") + message(11, message(1, b"x") + message(2, tensor)))


def mutated(rng: np.random.Generator, seeds: list[bytes], count: int) -> Iterator[bytes]:
    """Damaged copies of the seeds, in turn."""
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(int(rng.integers(1, 4))):
            reach = len(data) if rng.random() < 0.5 else min(200, len(data))
            at = int(rng.integers(0, max(reach, 1)))
            length = int(rng.integers(1, SPLICE))
            match int(rng.integers(0, 5)):
                case 0:
                    data[at : at + 1] = rng.bytes(1)
                case 1:
                    data[at : at + 4] = int(rng.choice([0, 1, 255, 2**31 - 1, 2**32 - 1])).to_bytes(4, "big")
                case 2:
                    del data[at : at + length]
                case 3:
                    data[at:at] = data[at : at + length]
                case _:
                    data[at : at + length] = seeds[int(rng.integers(len(seeds)))][at : at + length]
        yield bytes(data)


def try_all(
    files: Iterator[bytes], read: Callable[[bytes], Any], refused: type[Exception] | tuple[type[Exception], ...]
) -> tuple[Counter[str], float]:
    """How many were read, refused, or broke the reader, by the exception's name; and the slowest in milliseconds."""
    outcomes: Counter[str] = Counter()
    slowest_ms = 0.0
    for data in files:
        start = time.thread_time()
        try:
            read(data)
            outcomes["read"] += 1
        except refused:
            outcomes["refused"] += 1
        except Exception as error:  # noqa: BLE001  # what must not happen is what is looked for
            outcomes[type(error).__name__] += 1
        slowest_ms = max(slowest_ms, (time.thread_time() - start) * 1000)
    return outcomes, slowest_ms


def depth_or_picture(data: bytes) -> Any:
    """What a control does with a file: depth if it begins like depth, else a picture."""
    return read_depth(data, (64, 64), "just") if is_depth_file(data[:64]) else decode(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    people = openpose_from_people(People.of(rng.uniform(0, 64, (2, 18, 2))), 64, 64).encode()
    network = seed_of_onnx()
    doors: list[tuple[str, list[bytes], int, Callable[[bytes], Any], type[Exception] | tuple[type[Exception], ...]]] = [
        ("pictures", seeds_of_pictures(rng), args.count, decode, BadImage),
        ("depth files", seeds_of_depth(rng), args.count // 10, depth_or_picture, BadImage),
        ("OpenPose's JSON", [people], args.count // 10, lambda data: people_from_openpose(data, 64, 64), BadRequest),
        ("ONNX headers", [network], args.count // 10, input_size, (ValueError, IndexError)),
    ]
    wrong = False
    for name, seeds, count, read, refused in doors:
        outcomes, slowest_ms = try_all(mutated(rng, seeds, count), read, refused)
        found = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
        print(f"{name:16} {count:6d}: {found}; slowest {slowest_ms:.1f} ms")
        wrong |= bool(set(outcomes) - {"read", "refused"}) or slowest_ms > SLOWEST_MS
    sys.exit(wrong)


if __name__ == "__main__":
    main()
