"""Published networks at work, from any hub id or folder of transformers': depth, segmentation, and masks from a box or a point.

Pictures are prepared here from what the folder's preprocessor_config.json says, not by transformers' image processors, whose fast kind
needs torchvision. Axes: H and W pixels of the picture, h and w of what the network sees or gives, Q queries, K classes.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from controls.palettes import ADE20K, COCO
from core.control import Image
from core.errors import BadModel
from core.making import ONE_AT_A_TIME

if TYPE_CHECKING:
    from torch import Tensor

DISTANCES = {"zoedepth", "glpn"}  # model types whose prediction is metres, not nearness
SAM2 = {"sam2", "sam2_video"}  # published checkpoints are of the second, which holds the first
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_CONFIGS = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its pictures: a size or a shorter or longer side, multiples of `multiple`, and what white and black are."""

    size: dict[str, int]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    keep_proportions: bool = False
    multiple: int = 1

    @classmethod
    def read(cls, name: str) -> "Preprocessing":
        """What a hub id or folder says; ImageNet's statistics and 512 × 512 where it says nothing.

        Raises:
            BadModel: the file is there and cannot be read.
        """
        values = read_config(name, _CONFIGS)
        values = values.get("image_processor", values)
        size = values.get("size") or {}
        size = {"height": size, "width": size} if isinstance(size, int) else size
        normalise = values.get("do_normalize", True)
        scale = 255 * float(values.get("rescale_factor", 1 / 255)) if values.get("do_rescale", True) else 255.0
        mean = values.get("image_mean", (0.485, 0.456, 0.406)) if normalise else (0, 0, 0)
        deviation = values.get("image_std", (0.229, 0.224, 0.225)) if normalise else (1, 1, 1)
        return cls(
            size={key: int(side) for key, side in (size or {"height": 512, "width": 512}).items()},
            mean=np.array(mean, np.float32) / np.float32(scale),
            deviation=np.array(deviation, np.float32) / np.float32(scale),
            keep_proportions=bool(values.get("keep_aspect_ratio", False)),
            multiple=int(values.get("ensure_multiple_of") or values.get("size_divisor") or 1),
        )

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that a picture is given."""
        if "height" in self.size:
            rows, columns = float(self.size["height"]), float(self.size["width"])
            if self.keep_proportions:  # the side that changes less decides, as in MiDaS
                scale = min((rows / height, columns / width), key=lambda factor: abs(1 - factor))
                rows, columns = scale * height, scale * width
        else:
            shorter, longer = self.size.get("shortest_edge"), self.size.get("longest_edge")
            scale = shorter / min(height, width) if shorter else float("inf")
            if longer:
                scale = min(scale, longer / max(height, width))
            rows, columns = scale * height, scale * width
        return self._whole(rows), self._whole(columns)

    def _whole(self, side: float) -> int:
        return max(self.multiple, round(side / self.multiple) * self.multiple)

    def __call__(self, image_HWC: Image, size: tuple[int, int] | None = None) -> "Tensor":
        """A picture as the network takes it, (1, 3, h, w)."""
        import torch

        rows, columns = size or self.target(*image_HWC.shape[:2])
        shrinks = rows * columns < image_HWC.shape[0] * image_HWC.shape[1]
        small_HWC = cv2.resize(
            np.ascontiguousarray(image_HWC), (columns, rows), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        values_HWC = (small_HWC.astype(np.float32) / 255 - self.mean) / self.deviation
        return torch.from_numpy(np.ascontiguousarray(values_HWC.transpose(2, 0, 1)))[None]


class Depth:
    """Estimated depth: RGB uint8 HWC → uint8 (H, W), near = bright, the farthest 0 and the nearest 255."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            BadModel: missing, damaged, or no depth network.
        """
        from transformers import AutoModelForDepthEstimation

        self.network, self.prepare = load(AutoModelForDepthEstimation, name, "depth"), Preprocessing.read(name)
        config = self.network.config
        self.far_is_large = config.model_type in DISTANCES or getattr(config, "depth_estimation_type", "") == "metric"

    def __call__(self, image_HWC: Image) -> NDArray[np.uint8]:
        prediction_hw = run(self.network, pixel_values=self.prepare(image_HWC)).predicted_depth[0].squeeze().float().cpu().numpy()
        if self.far_is_large:
            prediction_hw = 1 / np.maximum(prediction_hw, 1e-3)
        height, width = image_HWC.shape[:2]
        nearness_HW = cv2.resize(np.atleast_2d(prediction_hw), (width, height), interpolation=cv2.INTER_CUBIC)
        return stretched(nearness_HW)


def stretched(nearness_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """Any numbers as levels, the smallest 0 and the largest 255; all 0 where they are equal."""
    low, high = float(nearness_HW.min()), float(nearness_HW.max())
    levels_HW: NDArray[np.uint8] = np.rint((nearness_HW - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)
    return levels_HW


class Segmentation:
    """What every pixel shows: RGB uint8 HWC → class numbers (H, W). classes: how many there are."""

    def __init__(self, name: str) -> None:
        """
        Raises:
            BadModel: missing, damaged, no segmentation network, or one for other classes than those ControlNets were shown.
        """
        from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

        kind = str(read_config(name, ("config.json",)).get("model_type"))
        self.by_queries = kind in ("mask2former", "maskformer", "oneformer")
        part = AutoModelForUniversalSegmentation if self.by_queries else AutoModelForSemanticSegmentation
        self.network, self.prepare = load(part, name, "segmentation"), Preprocessing.read(name)
        self.classes = int(self.network.config.num_labels)
        if self.classes not in (len(ADE20K), len(COCO)):
            raise BadModel(
                f"segmentation estimator {name!r} knows {self.classes} classes, for which ControlNets have no colours: "
                f"give one for ADE20K's {len(ADE20K)} or COCO's {len(COCO)}"
            )
        self.inputs = {"task_inputs": _task(name, self.network.config)} if kind == "oneformer" else {}

    def __call__(self, image_HWC: Image) -> NDArray[np.int64]:
        import torch

        output = run(self.network, pixel_values=self.prepare(image_HWC), **self.inputs)
        if self.by_queries:
            chances_QK = output["class_queries_logits" if "class_queries_logits" in output else "class_logits"][0].softmax(-1)[:, :-1]
            masks_Qhw = output["masks_queries_logits"][0].sigmoid()
            scores_Khw = torch.einsum("qk,qhw->khw", chances_QK, masks_Qhw)
        else:
            scores_Khw = output.logits[0]
        large_KHW = torch.nn.functional.interpolate(scores_Khw[None].float(), image_HWC.shape[:2], mode="bilinear")[0]
        labels_HW: NDArray[np.int64] = large_KHW.argmax(0).cpu().numpy()
        return labels_HW


def _task(name: str, config: Any) -> "Tensor":
    """OneFormer's question, "the task is semantic", as tokens."""
    from transformers import AutoTokenizer

    try:
        tokens = AutoTokenizer.from_pretrained(name)(
            "the task is semantic", padding="max_length", max_length=config.task_seq_len, truncation=True, return_tensors="pt"
        )
    except (OSError, ValueError, KeyError) as error:
        raise BadModel(f"segmentation estimator {name!r} has no tokenizer ({type(error).__name__}): OneFormer needs one") from None
    ids: Tensor = tokens["input_ids"]
    return ids


class Mask:
    """One thing in a picture, by a box and perhaps a point, as shares of width and height: → uint8 (H, W), 255 inside.

    SAM sees the picture in its proportions, in the corner of a square; SAM 2 sees it squeezed into the square. Source: Kirillov et al.,
    arXiv 2304.02643; Ravi et al., "SAM 2", arXiv 2408.00714.
    """

    def __init__(self, name: str) -> None:
        """
        Raises:
            BadModel: missing, damaged, or no Segment Anything network.
        """
        from transformers import Sam2Model, SamModel

        self.squeezed = str(read_config(name, ("config.json",)).get("model_type")) in SAM2
        self.network, self.prepare = load(Sam2Model if self.squeezed else SamModel, name, "mask"), Preprocessing.read(name)
        self.side_px = int(self.network.config.prompt_encoder_config.image_size)

    def __call__(
        self, image_HWC: Image, box: tuple[float, float, float, float], point: tuple[float, float] | None = None
    ) -> NDArray[np.uint8]:
        import torch

        height, width = image_HWC.shape[:2]
        scale = self.side_px / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        if self.squeezed:
            rows = columns = self.side_px
        pixels = torch.zeros(1, 3, self.side_px, self.side_px)
        pixels[..., :rows, :columns] = self.prepare(image_HWC, (rows, columns))
        size = torch.tensor([columns, rows, columns, rows], dtype=torch.float32)
        asked: dict[str, Tensor] = {"input_boxes": (torch.tensor(box) * size)[None, None]}
        if point is not None:
            asked |= {
                "input_points": (torch.tensor(point) * size[:2])[None, None, None],
                "input_labels": torch.ones(1, 1, 1, dtype=torch.long),
            }
        output = run(self.network, pixel_values=pixels, multimask_output=False, **asked)
        found = output.pred_masks[0, :, :1].float()
        if not self.squeezed:
            found = torch.nn.functional.interpolate(found, (self.side_px, self.side_px), mode="bilinear")[..., :rows, :columns]
        large = torch.nn.functional.interpolate(found, (height, width), mode="bilinear")
        mask_HW: NDArray[np.uint8] = (large[0, 0] > 0).cpu().numpy().view(np.uint8) * np.uint8(255)
        return mask_HW


def run(network: Any, **inputs: Any) -> Any:
    """A network's output, on whatever device it is on, without gradients."""
    import torch

    inputs = {name: value.to(network.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
    with torch.inference_mode():
        return network(**inputs)


def load(part: Any, name: str, kind: str) -> Any:
    """A network in evaluation mode, in fp32, on the GPU where there is one.

    Raises:
        BadModel: no such folder or hub id, files missing or damaged, pickled weights, or an architecture that `part` does not take.
    """
    import torch

    network = load_network(part, str(place(name, kind)), f"give a {kind} network's hub id or folder")
    return network.to("cuda" if torch.cuda.is_available() else "cpu")


def place(name: str, kind: str) -> Path | str:
    """The folder, or the hub id.

    Raises:
        BadModel: neither.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not _HUB_ID.fullmatch(name):
        raise BadModel(f"no {kind} estimator {name!r}: give a hub id such as 'owner/name', or a folder")
    return name


def read_config(name: str, files: tuple[str, ...]) -> dict[str, Any]:
    """The first of these JSON files in a folder or at a hub id; empty if there is none.

    Raises:
        BadModel: it is no JSON.
    """
    from transformers.utils import cached_file

    for file in files:
        try:
            path = cached_file(str(place(name, "")), file, _raise_exceptions_for_missing_entries=False)
            if path is not None:
                values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
                return values
        except (OSError, ValueError) as error:
            raise BadModel(f"estimator {name!r}: {file} cannot be read ({' '.join(str(error).split())[:120]})") from None
    return {}


def load_network(part: Any, source: Path | str, remedy: str) -> Any:
    """A transformers network in evaluation mode, in fp32 whatever its weights are stored in, with every tensor it needs.

    Raises:
        BadModel: anything else.
    """
    import torch
    from safetensors import SafetensorError

    try:
        with ONE_AT_A_TIME, quiet():
            network, info = part.from_pretrained(source, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadModel(f"estimator {str(source)!r} cannot be loaded ({reason}): {remedy}") from error
    if missing := sorted(info["missing_keys"]):
        raise BadModel(f"estimator {str(source)!r} lacks {len(missing)} tensors (first {missing[0]}): {remedy}")
    return network.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' remarks and bars."""
    import transformers.utils.logging as logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
