"""Depth of more than 8 bits: `.npy` and 16-bit PNG in, and what is refused."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest

from controls import depth
from controls.depthfile import is_depth_file
from controls.prepare import load_map
from core.errors import BadImage
from core.request import ControlUnit


def npy(array: np.ndarray, **how: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def ramp(dtype: str = "float32", low: float = 2.0, high: float = 10.0) -> np.ndarray:
    return np.repeat(np.linspace(low, high, 96)[None], 64, axis=0).astype(dtype)


def read(data: bytes, values: str = "nearness", width: int = 96, height: int = 64) -> np.ndarray:
    return depth.read_file(data, width, height, "just", depth.Params(values=values))[..., 0].astype(float)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "int32", "uint16"])
def test_nearness_is_stretched_to_its_own_range(dtype: str) -> None:
    levels = read(npy(ramp(dtype, 20, 2000)))
    assert np.abs(levels - np.linspace(0, 255, 96)).max() <= 1
    for shape in ((64, 96, 1), (1, 64, 96), (1, 1, 64, 96)):
        np.testing.assert_array_equal(read(npy(ramp(dtype, 20, 2000).reshape(shape))), levels)


def test_distances_become_nearness_and_zero_is_far() -> None:
    metres = ramp()
    metres[:8] = 0
    levels = read(npy(metres), "distance")
    inverse = 1 / ramp()[0].astype(float)
    wanted = (inverse - inverse.min()) / np.ptp(inverse) * 255
    assert np.abs(levels[20] - wanted).max() <= 1
    assert not levels[:8].any()


def test_sixteen_bit_pictures_keep_their_range(tmp_path: Path) -> None:
    """Millimetres in 16 bits: as an 8-bit picture they would all be black."""
    path = tmp_path / "depth.png"
    cv2.imwrite(str(path), ramp("uint16", 500, 4000))
    assert is_depth_file(path.read_bytes()[:64])
    prepared = load_map(ControlUnit(kind="depth", image=path, params={"values": "distance"}), 96, 64)
    assert (prepared.map_HWC[0, 0, 0], prepared.map_HWC[0, -1, 0]) == (255, 0)
    assert prepared.params["values"] == "distance"
    (tmp_path / "depth.npy").write_bytes(npy(ramp()))
    placed = load_map(ControlUnit(kind="depth", image=tmp_path / "depth.npy", resize="fill"), 96, 128).map_HWC
    assert not placed[:32].any()
    assert placed[40, -1, 0] == 255


def test_eight_bit_pictures_are_no_depth_files(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "grey.png"), ramp("uint8", 0, 200))
    assert not is_depth_file((tmp_path / "grey.png").read_bytes()[:64])


@pytest.mark.parametrize("shape", [(64, 96), (1, 64, 96), (64, 96, 1)])
def test_a_transposed_array_is_read_as_numpy_reads_it(shape: tuple[int, ...]) -> None:
    """`numpy.save` keeps the order in memory, as of `depth.T`."""
    values = (ramp() * np.linspace(1, 2, 64)[:, None]).reshape(shape)
    np.testing.assert_array_equal(read(npy(np.asfortranarray(values))), read(npy(values)))


def test_a_column_stays_a_column() -> None:
    column = np.linspace(0, 1, 64)[:, None]
    np.testing.assert_array_equal(read(npy(column), width=1)[:, 0], np.rint(255 * column[:, 0]))


def ground() -> np.ndarray:
    """Metres of a street: far at the top, near at the bottom."""
    return np.repeat(np.linspace(40, 2, 64)[:, None], 96, axis=1)


@pytest.mark.parametrize(("values", "wrong"), [(ground(), "nearness"), (1 / ground(), "distance")], ids=["metres", "nearness"])
@pytest.mark.parametrize("suffix", [".npy", ".png"])
def test_depth_with_its_far_end_bright_is_noticed_in_a_file_too(tmp_path: Path, values: np.ndarray, wrong: str, suffix: str) -> None:
    path = tmp_path / f"street{suffix}"
    levels = (values / values.max() * 60000).astype(np.uint16)
    path.write_bytes(npy(values) if suffix == ".npy" else cv2.imencode(".png", levels)[1].tobytes())
    for setting in ("nearness", "distance"):
        for resize in ("crop", "fill"):
            unit = ControlUnit(kind="depth", image=path, params={"values": setting}, resize=resize)
            said = load_map(unit, 96, 64).warnings
            if setting == wrong:
                assert said[0].startswith(f"street{suffix} has its")
                assert "values=distance if they are" in said[0]
            else:
                assert said == ()
    right = {"nearness": "distance", "distance": "nearness"}[wrong]
    (narrow,) = load_map(ControlUnit(kind="depth", image=path, params={"values": right}), 64, 64).warnings
    assert f"street{suffix} is 96x64 and loses 33% to fit 64x64" in narrow


def test_flat_depth_is_far() -> None:
    assert not read(npy(np.full((64, 96), 3.5))).any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.where(ramp() > 9, np.nan, ramp())), "that are NaN or infinite"),
        (npy(np.where(ramp() > 9, np.inf, ramp())), "that are NaN or infinite"),
        (npy(np.zeros((64, 96, 3))), r"of shape \(64, 96, 3\): give one number for each pixel"),
        (npy(np.zeros(96)), r"of shape \(96,\)"),
        (npy(np.zeros((0, 96))), r"of shape \(0, 96\)"),
        (npy(ramp().astype(complex)), "holds complex128"),
        (npy(np.array([["a", "b"]])), "holds <U1"),
        (npy(np.array([[None]], object), allow_pickle=True), r"holds object|no readable"),
        (npy(ramp())[:-50], "ends early"),
        (npy(ramp())[:20], "no readable .npy"),
        (npy(ramp()).replace(b"(64, 96)", b"(64, 1e9)"), "no readable|ends early|over the limit"),
        (b"\x93NUMPY\x01\x00\xff\xff", "no readable"),
    ],
)
def test_files_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BadImage, match=message):
        read(data)


def test_distances_need_a_positive_one() -> None:
    with pytest.raises(BadImage, match="without a single positive value"):
        read(npy(np.zeros((64, 96))), "distance")


def test_huge_claims_cost_no_memory() -> None:
    data = npy(np.zeros((1, 9999999), np.uint8))[:200].replace(b"(1, 9999999)", b"(9999,99999)")
    with pytest.raises(BadImage, match="over the limit"):
        read(data)


def test_damaged_sixteen_bit_pictures_are_refused() -> None:
    data = cv2.imencode(".png", ramp("uint16", 0, 60000))[1].tobytes()
    for cut in (30, 60, len(data) // 2):
        with pytest.raises(BadImage, match="damaged"):
            read(data[:cut])
