"""Published estimators' classes, tiny and with random weights: against transformers' own processing, and through the controls' doors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from controls import depth, estimators, mask, networks, normal, people, pose, segmentation
from controls.networks import Preprocessing
from controls.palettes import ADE20K, COCO
from core.control import Image
from core.errors import BadModel
from core.skeleton import JOINTS
from tests.controls.tinynets import write

pytestmark = pytest.mark.filterwarnings("ignore:.*(meshgrid|torchvision).*")  # transformers' own


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny network, written once."""
    folder = tmp_path_factory.mktemp("networks")

    def get(name: str) -> str:
        path = folder / name
        return str(path if path.is_dir() else write(name, folder))

    return get


def picture(height: int = 48, width: int = 80) -> Image:
    rows, columns = np.mgrid[:height, :width]
    canvas = np.stack([255 * rows / height, 255 * columns / width, 120 + 80 * np.sin(columns / 9)], axis=2).astype(np.uint8)
    canvas[height // 3 : height // 2, width // 4 : width // 2] = (240, 240, 30)
    return canvas


@pytest.mark.parametrize("name", ["dpt", "zoedepth"])
def test_depth_is_the_networks_prediction_near_bright(net: Callable[[str], str], name: str) -> None:
    estimate = networks.Depth(net(name))
    levels_HW = estimate(picture())
    assert (levels_HW.shape, levels_HW.dtype, levels_HW.min(), levels_HW.max()) == ((48, 80), np.uint8, 0, 255)
    with torch.inference_mode():
        raw_hw = estimate.network(pixel_values=estimate.prepare(picture())).predicted_depth[0].numpy().squeeze()
    near_hw = 1 / raw_hw if name == "zoedepth" else raw_hw  # ZoeDepth gives metres
    near_HW = np.asarray(torch.nn.functional.interpolate(torch.from_numpy(near_hw)[None, None], (48, 80), mode="bicubic"))[0, 0]
    assert np.corrcoef(near_HW.ravel(), levels_HW.ravel())[0, 1] > 0.99  # inverted before or after resizing


def test_sizes_follow_the_folders_words() -> None:
    def target(size: dict[str, int], height: int, width: int, **words: Any) -> tuple[int, int]:
        return Preprocessing(size, np.zeros(3, np.float32), np.ones(3, np.float32), **words).target(height, width)

    assert target({"height": 384, "width": 384}, 480, 640) == (384, 384)
    assert target({"height": 518, "width": 518}, 480, 640, keep_proportions=True, multiple=14) == (518, 686)  # as Depth Anything's
    assert target({"shortest_edge": 512}, 480, 640) == (512, 683)
    assert target({"shortest_edge": 800, "longest_edge": 1000}, 480, 640, multiple=32) == (736, 992)
    assert target({"longest_edge": 1024}, 480, 640) == (768, 1024)


def test_pixels_are_those_of_transformers_own_processor(net: Callable[[str], str]) -> None:
    from transformers import SegformerImageProcessorPil

    wanted = SegformerImageProcessorPil(size={"height": 48, "width": 80})(picture(), return_tensors="pt")["pixel_values"]
    ours = Preprocessing.read(net("segformer"))(picture(), (48, 80))
    assert float((wanted - ours).abs().max()) < 1e-5  # no resizing here, only scale, mean and deviation


@pytest.mark.parametrize("name", ["segformer", "upernet", "mask2former", "oneformer"])
def test_segmentation_agrees_with_transformers_own_postprocessing(net: Callable[[str], str], name: str) -> None:
    import transformers

    estimate = networks.Segmentation(net(name))
    labels_HW = estimate(picture())
    assert labels_HW.shape == (48, 80)
    processors = {"mask2former": "Mask2FormerImageProcessorPil", "oneformer": "OneFormerImageProcessorPil"}
    processor_type = getattr(transformers, processors.get(name, "SegformerImageProcessorPil"))
    extra = {"repo_path": None, "class_info_file": None} if name == "oneformer" else {}
    with torch.inference_mode():
        output = estimate.network(pixel_values=estimate.prepare(picture()), **estimate.inputs)
    try:
        processor = processor_type(**extra)
    except (TypeError, ValueError, OSError):  # OneFormer's wants a file from the hub
        processor = transformers.Mask2FormerImageProcessorPil()
    wanted_HW = processor.post_process_semantic_segmentation(output, target_sizes=[(48, 80)])[0].numpy()
    assert (labels_HW == wanted_HW).mean() > 0.97  # Mask2Former's own goes through 384 × 384 and softens borders twice
    palette = COCO if name == "mask2former" else ADE20K
    map_HWC = segmentation.extract(picture(), segmentation.Params(estimator=net(name)))
    np.testing.assert_array_equal(map_HWC, palette[labels_HW])
    score = segmentation.compare(map_HWC, picture(), segmentation.Params(estimator=net(name)))
    assert score is not None
    assert score.value == 1.0


def test_masks_agree_with_transformers_own_processing(net: Callable[[str], str]) -> None:
    from transformers import SamImageProcessorPil

    estimate = networks.Mask(net("sam"))
    box, point = (0.25, 0.25, 0.75, 0.75), (0.5, 0.4)
    mask_HW = estimate(picture(), box, point)
    assert set(np.unique(mask_HW)) <= {0, 255}
    processor = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    inputs = processor(picture(), return_tensors="pt")
    scale = 64 / 80
    asked = {
        "input_boxes": torch.tensor([[[0.25 * 80, 0.25 * 48, 0.75 * 80, 0.75 * 48]]]) * scale,
        "input_points": torch.tensor([[[[0.5 * 80, 0.4 * 48]]]]) * scale,
        "input_labels": torch.ones(1, 1, 1, dtype=torch.long),
    }
    with torch.inference_mode():
        output = estimate.network(pixel_values=inputs["pixel_values"], multimask_output=False, **asked)
    (wanted,) = processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert (wanted[0, 0].numpy() == (mask_HW > 0)).mean() > 0.95  # the pictures are resized by other filters
    params = mask.Params(method="network", estimator=net("sam"), left=0.25, top=0.25, right=0.75, bottom=0.75, x=0.5, y=0.4)
    np.testing.assert_array_equal(mask.extract(picture(), params)[..., 0], mask_HW)


def test_sam_2_sees_the_squeezed_picture_and_its_mask_is_stretched_back(net: Callable[[str], str]) -> None:
    estimate = networks.Mask(net("sam2"))
    box, point = (0.25, 0.25, 0.75, 0.75), (0.5, 0.4)
    mask_HW = estimate(picture(), box, point)
    assert mask_HW.shape == (48, 80)
    # as Sam2Processor: every coordinate by its own axis' factor, the picture without proportions or padding
    asked = {
        "input_boxes": torch.tensor([[[16.0, 16.0, 48.0, 48.0]]]),
        "input_points": torch.tensor([[[[32.0, 25.6]]]]),
        "input_labels": torch.ones(1, 1, 1, dtype=torch.int32),
    }
    with torch.inference_mode():
        output = estimate.network(pixel_values=estimate.prepare(picture(), (64, 64)), multimask_output=False, **asked)
    wanted = torch.nn.functional.interpolate(output.pred_masks[0], (48, 80), mode="bilinear", align_corners=False)[0, 0] > 0
    np.testing.assert_array_equal(wanted.numpy(), mask_HW > 0)
    assert 0 < (mask_HW > 0).mean() < 1
    params = mask.Params(method="network", estimator=net("sam2"), left=0.25, top=0.25, right=0.75, bottom=0.75, x=0.5, y=0.4)
    np.testing.assert_array_equal(mask.extract(picture(), params)[..., 0], mask_HW)


def test_people_are_the_detectors_boxes(net: Callable[[str], str]) -> None:
    from transformers import RTDetrImageProcessorPil

    detector = people.Detector(net("rtdetr"))
    boxes_P4 = detector(picture(), 0.0)
    with torch.inference_mode():
        output = detector.network(pixel_values=detector.prepare(picture()))
    (found,) = RTDetrImageProcessorPil().post_process_object_detection(output, threshold=0.0, target_sizes=[(48, 80)])
    wanted = found["boxes"][found["labels"] == detector.person].numpy()
    assert len(wanted) > 0
    for box in wanted:
        assert np.abs(boxes_P4 - box).max(axis=1).min() < 1e-3
    assert len(detector(picture(), 1.0)) == 0


def test_places_agree_with_transformers_own_decoding() -> None:
    """Gaussian peaks at known places of a heatmap, led back to the picture by both."""
    from types import SimpleNamespace

    from transformers import VitPoseImageProcessorPil

    rng = np.random.default_rng(0)
    cells = rng.uniform((4, 4), (43, 59), (17, 2))
    rows, columns = np.mgrid[:64, :48]
    distance = (columns - cells[:, 0, None, None]) ** 2 + (rows - cells[:, 1, None, None]) ** 2
    heatmaps = np.exp(-distance / (2 * 2**2)).astype(np.float32)
    box = np.array([100, 50, 220, 250], float)
    _, back = people.crop(picture(300, 400), box, (192, 256))
    places_J2, peaks_J = people.decode(heatmaps, (192, 256))
    processor = VitPoseImageProcessorPil(size={"height": 256, "width": 192})
    output = SimpleNamespace(heatmaps=torch.from_numpy(heatmaps)[None])
    ((found,),) = processor.post_process_pose_estimation(output, boxes=[[[100, 50, 120, 200]]])
    theirs = found["keypoints"].numpy()
    assert np.abs(back(places_J2) - theirs).max() < 1.5  # of 400; theirs measures from a pixel's centre, and the box to its last pixel
    assert peaks_J.min() > 0.8


def test_a_person_for_every_box(net: Callable[[str], str]) -> None:
    joints = people.Pose(net("vitpose"))(picture(96, 80), confidence=0.0, detector="whole")
    assert joints.shape == (1, 18, 2)
    assert np.isfinite(joints[0, 2:]).all()
    assert len(people.Pose(net("vitpose"))(picture(96, 80), confidence=0.0, detector=net("rtdetr"))) == 6  # one for each query


def test_joints_of_coco_become_openposes() -> None:
    coco = np.stack([np.arange(17.0), np.zeros(17)], axis=1)
    joints = people.openpose_joints(coco)
    names = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow"]
    names += ["left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"]
    assert [JOINTS[int(place)] for place in people.COCO_TO_OPENPOSE] == names
    assert joints[JOINTS.index("neck")].tolist() == [5.5, 0]
    coco[5] = np.nan
    assert np.isnan(people.openpose_joints(coco)[JOINTS.index("neck")]).all()


@pytest.mark.parametrize("box", [(10, 5, 50, 45), (-20, 0, 30, 90), (0, 10, 80, 20)])
def test_a_crop_leads_back_to_where_it_was_taken(box: tuple[int, int, int, int]) -> None:
    """A bright spot in the picture is found in the crop and led back to within a tenth of a pixel."""
    rows, columns = np.mgrid[:96, :80]
    spot = (30.3, 24.8) if box[3] > 20 else (40.3, 15.2)
    light = 255 * np.exp(-((columns + 0.5 - spot[0]) ** 2 + (rows + 0.5 - spot[1]) ** 2) / 18)
    crop_HWC, back = people.crop(np.rint(light)[..., None].repeat(3, 2).astype(np.uint8), np.array(box, float), (48, 64))
    weight = crop_HWC[..., 0].astype(float)
    y, x = np.mgrid[:64, :48]
    centre = np.array([((x + 0.5) * weight).sum(), ((y + 0.5) * weight).sum()]) / weight.sum()
    np.testing.assert_allclose(back(centre), spot, atol=0.1)


def test_the_doors_take_any_folder(net: Callable[[str], str]) -> None:
    map_HWC = depth.extract(picture(), depth.Params(estimator=net("dpt")))
    assert map_HWC.shape == (48, 80, 3)
    params = normal.Params(estimator=net("dpt"))
    assert normal.available(params)
    np.testing.assert_array_equal(normal.extract(picture(), params), normal.normals(map_HWC[..., 0], params))
    assert normal.compare(normal.extract(picture(), params), picture(), params).value == pytest.approx(1.0)  # type: ignore[union-attr]
    settings = pose.Params(estimator=net("vitpose"), detector=net("rtdetr"), confidence=0.0)
    assert pose.extract(picture(), settings).shape == (48, 80, 3)
    assert not pose.extract(picture(), settings.model_copy(update={"confidence": 1.0})).any()  # nobody
    assert pose.available(settings)


def test_a_network_is_loaded_once_and_not_for_measuring_alone(net: Callable[[str], str]) -> None:
    estimators._named.clear()
    assert depth.compare(picture(), picture(), depth.Params(estimator=net("dpt"))) is None
    loaded = estimators.find("depth", net("dpt"))
    assert estimators.find("depth", net("dpt")) is loaded
    assert depth.compare(picture(), picture(), depth.Params(estimator=net("dpt"))) is not None


def test_what_is_not_there_or_does_not_fit_is_said_in_one_line(net: Callable[[str], str], tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="no depth estimator 'nowhere at all'"):
        networks.Depth("nowhere at all")
    with pytest.raises(BadModel, match="cannot be loaded"):
        networks.Depth(net("segformer"))
    with pytest.raises(BadModel, match=r"estimator .* cannot be"):
        networks.Depth("owner/is-not-on-this-machine")
    with pytest.raises(BadModel, match="cannot be"):
        networks.Depth(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(BadModel, match=r"preprocessor_config\.json cannot be read"):
        Preprocessing.read(str(tmp_path))


def test_a_network_for_other_classes_is_refused(net: Callable[[str], str], tmp_path: Path) -> None:
    """Cityscapes' 19 would be painted as ADE20K's first 19, and the ControlNet would read other things."""
    import transformers

    config = transformers.SegformerConfig.from_pretrained(net("segformer"), num_labels=19)
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path / "cityscapes")
    with pytest.raises(BadModel, match=r"knows 19 classes, .*ADE20K's 150 or COCO's 133"):
        networks.Segmentation(str(tmp_path / "cityscapes"))
