"""ONNX files through OpenCV: small networks whose answer is known, and files that are none."""

from pathlib import Path

import numpy as np
import pytest

from controls import depth, estimators, pose
from controls.onnxfile import DEVIATION, MEAN, POINTS, Depth, Pose, input_size
from core.control import Image
from core.errors import BadModel
from core.openpose import People
from tests.controls.onnxwriter import model, node


def picture() -> Image:
    """Red grows to the right."""
    red_HW = np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None], 40, axis=0)
    return np.stack([red_HW, red_HW[:, ::-1], np.full_like(red_HW, 9)], axis=2)


@pytest.fixture
def red(tmp_path: Path) -> Path:
    """A network for which the reddest is the nearest: one 1 × 1 convolution that undoes the normalisation of red."""
    weight = np.array([DEVIATION[0], 0, 0], np.float32).reshape(1, 3, 1, 1)
    data = model([node("Conv", ["x", "w"], "y", kernel_shape=[1, 1])], {"w": weight}, (1, 3, 24, 36), ["y"])
    (tmp_path / "red.onnx").write_bytes(data)
    return tmp_path / "red.onnx"


def test_the_inputs_size_is_read_from_the_file(red: Path) -> None:
    assert input_size(red.read_bytes()) == (24, 36)
    assert input_size(model([node("Relu", ["x"], "y")], {}, (1, 3, 0, 0), ["y"])) is None


def test_depth_is_what_the_network_says(red: Path) -> None:
    levels_HW = Depth(red)(picture())
    assert levels_HW.shape == (40, 60)
    assert np.abs(levels_HW.astype(int) - picture()[..., 0]).max() <= 6  # shrunk to 24 × 36 and enlarged again


def test_a_file_is_an_estimator_like_any_other(red: Path) -> None:
    map_HWC = depth.extract(picture(), depth.Params(estimator=str(red)))
    np.testing.assert_array_equal(map_HWC[..., 0], Depth(red)(picture()))
    score = depth.compare(map_HWC, picture(), depth.Params(estimator=str(red)))
    assert score is not None
    assert score.value == pytest.approx(1.0)
    with pytest.raises(BadModel, match="only depth and pose are read from ONNX"):
        estimators.find("segmentation", str(red))


def test_dwposes_layout(tmp_path: Path) -> None:
    """Coordinates as two outputs of 133 rows of bins; here each point's bins are weights, and so its place is known."""
    rng = np.random.default_rng(0)
    bins_x, bins_y = rng.integers(20, 556, POINTS), rng.integers(20, 748, POINTS)
    scores = {"bx": np.zeros((1, POINTS, 576), np.float32), "by": np.zeros((1, POINTS, 768), np.float32)}
    scores["bx"][0, np.arange(POINTS), bins_x] = 0.9
    scores["by"][0, np.arange(POINTS), bins_y] = 0.9
    scores["by"][0, 100] = 0.1  # a point of the left hand that is not seen
    nodes = [node("ReduceMean", ["x"], "m", axes=[1, 2, 3], keepdims=1)]
    nodes += [node("Reshape", ["m", "shape"], "r"), node("Mul", ["r", "zero"], "z")]
    nodes += [node("Add", ["z", "bx"], "simcc_x"), node("Add", ["z", "by"], "simcc_y")]
    weights = scores | {"shape": np.array([1, 1, 1], np.int64), "zero": np.zeros((1, 1, 1), np.float32)}
    path = tmp_path / "dw.onnx"
    path.write_bytes(model(nodes, weights, (1, 3, 384, 288), ["simcc_x", "simcc_y"]))
    people = Pose(path)(picture(), 0.3, "whole")
    assert isinstance(people, People)
    assert (people.body.shape, people.hands.shape, people.face.shape) == ((1, 18, 2), (1, 2, 21, 2), (1, 70, 2))
    # the crop is the picture widened by a quarter: 75 pixels across in a crop of 288
    scale = 288 / 75
    points = (np.stack([(bins_x + 0.5) / 2, (bins_y + 0.5) / 2], axis=1) - (144, 192)) / scale + (30, 20)
    np.testing.assert_allclose(people.body[0, 0], points[0])  # the nose
    np.testing.assert_allclose(people.body[0, 4], points[10])  # the right wrist
    np.testing.assert_allclose(people.body[0, 1], (points[5] + points[6]) / 2)  # the neck
    np.testing.assert_allclose(people.face[0, :68], points[23:91])
    np.testing.assert_allclose(people.hands[0, 1], points[112:133])
    assert np.isnan(people.hands[0, 0, 9]).all()
    assert np.isnan(people.face[0, 68:]).all()
    map_HWC = pose.extract(picture(), pose.Params(estimator=str(path), detector="whole"))
    assert map_HWC.any()


def test_what_is_no_network_is_refused(tmp_path: Path, red: Path) -> None:
    for name, data in (("text.onnx", b"not a network"), ("empty.onnx", b""), ("cut.onnx", red.read_bytes()[:60])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(BadModel, match=name):
            Depth(tmp_path / name)
    with pytest.raises(BadModel, match="absent"):
        Depth(tmp_path / "absent.onnx")
    with pytest.raises(BadModel, match="133 rows"):
        Pose(red)(picture(), 0.3, "whole")


def test_the_normalisation_is_imagenets() -> None:
    assert MEAN.tolist() == pytest.approx([0.485, 0.456, 0.406])
