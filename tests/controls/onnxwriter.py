"""Writes the few ONNX files that the tests need, byte by byte: a graph of standard operators with its weights inside."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def model(nodes: Sequence[bytes], weights: dict[str, np.ndarray[Any, Any]], shape: Sequence[int], outputs: Sequence[str]) -> bytes:
    """A model of one float input "x" of the given shape."""
    graph = b"".join(field(1, node) for node in nodes) + field(2, b"graph")
    graph += b"".join(field(5, tensor(name, values)) for name, values in weights.items())
    graph += field(11, value_info("x", shape)) + b"".join(field(12, value_info(name, ())) for name in outputs)
    return varint_field(1, 8) + field(7, graph) + field(8, field(1, b"") + varint_field(2, 13))


def node(operator: str, inputs: Sequence[str], output: str, **integers: Sequence[int] | int) -> bytes:
    body = b"".join(field(1, name.encode()) for name in inputs) + field(2, output.encode()) + field(3, output.encode())
    body += field(4, operator.encode())
    for name, value in integers.items():
        if isinstance(value, int):
            body += field(5, field(1, name.encode()) + varint_field(3, value) + varint_field(20, 2))
        else:
            body += field(5, field(1, name.encode()) + b"".join(varint_field(8, item) for item in value) + varint_field(20, 7))
    return body


def tensor(name: str, values: np.ndarray[Any, Any]) -> bytes:
    kind = {"float32": 1, "int64": 7}[values.dtype.name]
    dimensions = b"".join(varint_field(1, side) for side in values.shape)
    return dimensions + varint_field(2, kind) + field(8, name.encode()) + field(9, values.tobytes())


def value_info(name: str, shape: Sequence[int]) -> bytes:
    dimensions = b"".join(field(1, varint_field(1, side) if side else field(2, b"open")) for side in shape)
    kind = varint_field(1, 1) + field(2, dimensions)
    return field(1, name.encode()) + field(2, field(1, kind))


def field(number: int, body: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(body)) + body


def varint_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
