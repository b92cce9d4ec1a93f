"""The record inside a picture: round trips, keys, names, and what other tools read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from core.control import Score
from core.errors import BadImage, BadRequest
from core.images import decode
from core.provenance import ControlRecord, Fidelity, Record, WeightFile, library_versions, read_record, write_picture
from core.request import build_request

IMAGE_HWC = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
A, B, C, D = (letter * 64 for letter in "abcd")


def record(index: int = 2, weights: tuple[WeightFile, ...] = (), **request: Any) -> Record:
    values = {"prompt": "a red sphere", "seed": 3, "count": 4, "width": 96, "height": 64, **request}
    values.setdefault("controls", [{"kind": "canny", "image": "photo.jpg", "weight": 0.8, "start": 0.1, "end": 0.7}])
    control = ControlRecord(source_sha256=A, map_sha256=B, params={"low": 50, "high": 150}, fidelity=Fidelity.of(Score(0.5, "F1", 0.5, "")))
    return Record(
        request=build_request(values),
        index=index,
        seed=values["seed"] + index,
        weights=weights or (WeightFile(part="base", file="text_encoder/model.safetensors", sha256=C),),
        controls=(control,) * len(values["controls"]),
    )


HOSTILE = {
    "plain": "a red sphere",
    "unicode": "猫が草の上に座る 🐈‍⬛ Ünïcödé — \u202etxt\u202c",
    "newlines": "first\nsecond\r\nthird\n\n",
    "quotes": 'she said "no", \'maybe\' \\ and \\"yes\\"',
    "imitation": "a dog\nNegative prompt: cat\nSteps: 1, Sampler: none",
    "control characters": "\0\x01\x1b[31m\x7f\t",
    "long": "long 猫 " * 14_000,
    "empty": "",
}


@pytest.mark.parametrize("prompt", HOSTILE.values(), ids=HOSTILE)
def test_what_is_written_is_read_back(prompt: str, tmp_path: Path) -> None:
    written = record(prompt=prompt, negative_prompt=prompt[::-1])
    write_picture(tmp_path / "picture.png", IMAGE_HWC, written)
    assert read_record(tmp_path / "picture.png") == written
    np.testing.assert_array_equal(decode(tmp_path / "picture.png"), IMAGE_HWC)


def test_a_record_over_a_mebibyte_survives(tmp_path: Path) -> None:
    written = record(prompt="猫" * 100_000, negative_prompt="犬" * 100_000)
    assert len(written.canonical_json()) > 2**20  # Pillow refuses to read a compressed text of this size
    write_picture(tmp_path / "picture.png", IMAGE_HWC, written)
    assert read_record(tmp_path / "picture.png") == written


def test_control_paths_that_are_not_utf8_survive(tmp_path: Path) -> None:
    written = record(controls=[{"kind": "canny", "image": Path(b"photo-\xff.png".decode("utf-8", "surrogateescape"))}])
    write_picture(tmp_path / "picture.png", IMAGE_HWC, written)
    assert read_record(tmp_path / "picture.png") == written
    assert len(written.request.sha256()) == 64


def test_two_writings_are_byte_identical(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_picture(tmp_path / name, IMAGE_HWC, record())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pillow_and_other_readers_see_both_texts(tmp_path: Path) -> None:
    write_picture(tmp_path / "picture.png", IMAGE_HWC, record(prompt="猫"))
    with PIL.Image.open(tmp_path / "picture.png") as image:
        assert image.info["parameters"].startswith("猫\nSteps: 20, ")
        assert json.loads(image.info["limn"])["request"]["prompt"] == "猫"


def test_the_infotext_is_what_the_web_ui_writes() -> None:
    written = record(
        weights=(
            WeightFile(part="base", file="text_encoder/model.safetensors", sha256=A),
            WeightFile(part="base", file="unet/diffusion_pytorch_model.safetensors", sha256=B),
            WeightFile(part="control 0", file="diffusion_pytorch_model.safetensors", sha256=C),
        ),
        negative_prompt="blurry",
        model="models/dreamer.safetensors",
        sampler="dpmpp_2m",
        schedule="karras",
        guidance_scale=7,
        controls=[
            {"kind": "canny", "image": "photo.jpg", "weight": 0.8, "start": 0.1, "end": 0.7, "mode": "prompt"},
            {"kind": "depth", "image": "map.png", "ready": True, "resize": "fill"},
        ],
    )
    assert written.infotext() == (
        "a red sphere\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 5, Size: 96x64, "
        "Model hash: bbbbbbbbbb, Model: dreamer, "
        'ControlNet 0: "Module: canny, Model: canny [cccccccc], Weight: 0.8, Resize Mode: Crop and Resize, Processor Res: 64, '
        "Threshold A: 50, Threshold B: 150, Guidance Start: 0.1, Guidance End: 0.7, Pixel Perfect: False, "
        'Control Mode: My prompt is more important", '
        'ControlNet 1: "Module: none, Model: depth, Weight: 1.0, Resize Mode: Resize and Fill, Processor Res: 64, '
        'Guidance Start: 0.0, Guidance End: 1.0, Pixel Perfect: False, Control Mode: Balanced", '
        f"Version: limn {library_versions()['limn']}"
    )


def test_the_infotext_says_what_was_used_as_the_web_ui_counts_it() -> None:
    """Its steps of a second pass are those that are walked, and its processor resolution is the extractor's."""
    units = [{"kind": "canny", "image": "photo.jpg", "processor_px": 512}]
    text = record(controls=units, steps=20, hires={"scale": 2.0, "steps": 30, "strength": 0.5}).infotext()
    assert "Processor Res: 512, " in text
    assert "Denoising strength: 0.5, Hires upscale: 2.0, Hires steps: 15, " in text


def test_the_key_depends_on_what_decides_the_picture_and_on_nothing_else() -> None:
    first = record()
    same = [
        record(index=0),
        record(seed=90),
        record(count=9),
        record(controls=[{"kind": "canny", "image": "elsewhere/copy.jpg", "weight": 0.8, "start": 0.1, "end": 0.7}]),
    ]
    assert {other.key() for other in same} == {first.key()}
    different = [
        record(prompt="a blue sphere"),
        record(steps=21),
        record(controls=[{"kind": "canny", "image": "photo.jpg", "weight": 0.9, "start": 0.1, "end": 0.7}]),
        record(weights=(WeightFile(part="base", file="text_encoder/model.safetensors", sha256=D),)),
        first.model_copy(update={"controls": (first.controls[0].model_copy(update={"source_sha256": D}),)}),
        first.model_copy(update={"dtype": "bfloat16"}),
        first.model_copy(update={"notes": ("the denoising network's weights are rounded: float8",)}),
    ]
    assert len({other.key() for other in [first, *different]}) == 8
    assert first.model_copy(update={"notes": ("memory ran out: decoded in tiles",)}).key() == first.key()
    assert first.file_name() == f"limn-{first.key()[:12]}-5.png"


@pytest.mark.parametrize(
    "change",
    [{"seed": 4}, {"index": 4, "seed": 7}, {"controls": ()}, {"weights": ()}, {"unknown": 1}],
    ids=["another seed", "beyond the count", "a control too few", "no weights", "unknown key"],
)
def test_records_that_contradict_themselves_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    values = {**record().model_dump(mode="json"), **change}
    path = tmp_path / "picture.png"
    info = PngInfo()
    info.add_text("limn", json.dumps(values))
    PIL.Image.fromarray(IMAGE_HWC).save(path, pnginfo=info)
    with pytest.raises(BadRequest, match=r"the Limn record in '.*picture\.png' is not valid: "):
        read_record(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "holds no Limn record: it was not made by Limn, or another program"),
        ("{", "is damaged: use an undamaged copy"),
        ("[" * 200_000, "is damaged: use an undamaged copy"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"schema_version": 99}', "has schema 99, this Limn reads 1"),
    ],
)
def test_pictures_without_a_readable_record(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    info = PngInfo()
    if text is not None:
        info.add_text("limn", text)
    PIL.Image.fromarray(IMAGE_HWC).save(path, pnginfo=info)
    with pytest.raises(BadRequest, match=message) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)


def test_another_file_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadImage, match="is not a PNG file"):
        read_record(tmp_path / "notes.txt")


def test_versions_are_found_without_importing_anything() -> None:
    found = library_versions()
    assert found["numpy"] == np.__version__
    assert "not installed" not in found.values()
