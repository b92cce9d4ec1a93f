"""Every layout of a dataset gives the same pairs, and says what is wrong with it."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from core.errors import BadImage, BadRequest
from core.images import encode_png
from training import formats
from training.data import DataConfig, Loader, Pair, read_pairs
from training.pairs import load

CAPTIONS = ("a red sphere", "größer", "a cone")


def picture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (64, 72, 3), dtype=np.uint8)


def files(folder: Path, pictures: str, conditions: str) -> None:
    for seed in range(3):
        for name, content in ((pictures, picture(seed)), (conditions, picture(seed + 10))):
            path = folder / name.format(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_png(content))


def json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def imagefolder(folder: Path) -> Path:
    files(folder, "images/{}.png", "hint/{}.png")
    json_lines(
        folder / "metadata.jsonl",
        [{"file_name": f"images/{i}.png", "text": text, "hint": f"hint/{i}.png"} for i, text in enumerate(CAPTIONS)],
    )
    return folder


def jsonl(folder: Path) -> Path:
    return imagefolder(folder).joinpath("metadata.jsonl").rename(folder / "rows.jsonl")


def fill50k(folder: Path) -> Path:
    files(folder, "target/{}.png", "source/{}.png")
    rows = [
        {"source": f"source/{i}.png", "hint": f"source/{i}.png", "target": f"target/{i}.png", "prompt": text}
        for i, text in enumerate(CAPTIONS)
    ]
    json_lines(folder / "prompt.json", rows)
    return folder


def folders(folder: Path) -> Path:
    files(folder, "images/{}.png", "hint/{}.png")
    for number, text in enumerate(CAPTIONS):
        (folder / "images" / f"{number}.txt").write_text(f"{text}\n", encoding="utf-8")
    return folder


def webdataset(folder: Path) -> Path:
    folder.mkdir()
    for shard, members in (("a", (0, 1)), ("b", (2,))):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for number in members:
                content = {"png": encode_png(picture(number)), "hint.png": encode_png(picture(number + 10))}
                content |= {"txt": CAPTIONS[number].encode()} if number else {"json": json.dumps({"txt": CAPTIONS[0]}).encode()}
                for extension, data in content.items():
                    member = tarfile.TarInfo(f"some/{number:04}.{extension}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def parquet(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    tables = pytest.importorskip("pyarrow.parquet")
    (folder / "data").mkdir(parents=True)
    cells = [[{"bytes": encode_png(picture(i + more)), "path": None} for i in range(3)] for more in (0, 10)]
    table = pyarrow.table({"image": cells[0], "hint": cells[1], "text": list(CAPTIONS)})
    tables.write_table(table, folder / "data" / "train-0.parquet", row_group_size=2)
    return folder


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "fill50k": fill50k, "folders": folders, "imagefolder": imagefolder, "jsonl": jsonl, "parquet": parquet, "webdataset": webdataset,
}  # fmt: skip


def config(folder: Path, **changes: Any) -> DataConfig:
    return DataConfig.model_validate({"folder": folder, "condition": "hint", "width": 64, "height": 64, **changes})


def test_every_format_is_tested() -> None:
    assert set(formats.names()) == set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_recognised_and_read(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / "data")
    assert formats.recognise(folder).name == layout
    pairs = read_pairs(config(folder))
    assert [pair.caption for pair in pairs] == list(CAPTIONS)
    for seed, pair in enumerate(pairs):
        assert np.array_equal(load(pair.picture), picture(seed))
        assert np.array_equal(load(pair.conditions[0]), picture(seed + 10))
    assert Loader(config(folder)).picture(pairs[0]).shape == (64, 64, 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_alone_will_do_where_conditions_are_extracted(layout: str, tmp_path: Path) -> None:
    given = config(LAYOUTS[layout](tmp_path / "data"), condition="canny", extract=True)
    pairs = read_pairs(given)
    assert [pair.conditions for pair in pairs] == [()] * 3
    assert set(np.unique(Loader(given).condition(pairs[0]))) <= {0, 255}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_read_beside_conditions(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / "data")
    for extract in (False, True):
        pairs = read_pairs(config(folder, condition="canny" if extract else "hint", extract=extract, mask="hint"))
        masks = [pair.mask for pair in pairs]
        assert all(mask is not None and np.array_equal(load(mask), picture(seed + 10)) for seed, mask in enumerate(masks))
    with pytest.raises(BadRequest, match="masks"):
        read_pairs(config(folder, mask="masks"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unknown_condition_is_named(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout](tmp_path / "data")
    with pytest.raises(BadRequest, match=r"hints"):
        read_pairs(config(folder, condition="hints"))


def test_what_is_nowhere_or_of_no_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="no such folder"):
        read_pairs(config(tmp_path / "nowhere"))
    with pytest.raises(BadRequest, match="no known format; known are fill50k"):
        read_pairs(config(tmp_path))
    with pytest.raises(BadRequest, match="unknown dataset format 'jsnl': did you mean 'jsonl'"):
        read_pairs(config(tmp_path, format="jsnl"))


def test_half_of_the_pairs_missing_is_said_with_the_first(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    (folder / "hint" / "1.png").unlink()
    (folder / "images" / "2.png").unlink()
    with pytest.raises(BadRequest, match=r"1 of 3 pairs have no condition in .*hint', the first is '1'"):
        read_pairs(config(folder))
    told: list[str] = []
    assert len(read_pairs(config(folder), lambda error: told.append(str(error)))) == 1
    assert len(told) == 2


def test_captions_in_latin_1_or_missing_are_named_and_a_template_fills_in(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    (folder / "images" / "1.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(BadRequest, match=r"1\.txt' is not UTF-8 \(byte 2\)"):
        read_pairs(config(folder))
    (folder / "images" / "1.txt").unlink()
    with pytest.raises(BadRequest, match=r"1 of 3 pairs have no caption in a \.txt file beside the picture, the first is '.*/1\.png'"):
        read_pairs(config(folder))
    assert read_pairs(config(folder, template="photo $stem of $$5"))[1].caption == "photo 1 of $5"


def test_captions_of_other_endings_and_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    for number, text in enumerate(CAPTIONS):
        (folder / "images" / f"{number}.txt").rename(folder / "images" / f"{number}.caption")
        (folder / "images" / f"{number}.caption").write_text(text, encoding="utf-8-sig")
    for ending in ("caption", ".caption"):
        assert [pair.caption for pair in read_pairs(config(folder, caption=ending))] == list(CAPTIONS)
    rows = imagefolder(tmp_path / "rows") / "metadata.jsonl"
    rows.write_text(rows.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert [pair.caption for pair in read_pairs(config(tmp_path / "rows"))] == list(CAPTIONS)


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    (folder / "hint" / "1.png").rename(folder / "hint" / "1.webp")
    assert len(read_pairs(config(folder))) == 3
    (folder / "hint" / "1.png").write_bytes(encode_png(picture(7)))
    with pytest.raises(BadRequest, match=r"hint/1\.webp' and '1\.png' have one name"):
        read_pairs(config(folder))


@pytest.mark.parametrize("layout", ["imagefolder", "parquet"])
def test_a_template_is_filled_from_columns_that_are_there(layout: str, tmp_path: Path) -> None:
    if layout == "imagefolder":
        folder = imagefolder(tmp_path / "data")
        rows = [{"file_name": f"images/{i}.png", "hint": f"hint/{i}.png", "label": label} for i, label in enumerate(("cat", "dog", None))]
        json_lines(folder / "metadata.jsonl", rows)
    else:
        folder = parquet(tmp_path / "data")
        tables = pytest.importorskip("pyarrow.parquet")
        (file,) = folder.rglob("*.parquet")
        table = tables.read_table(file).drop_columns(["text"]).append_column("label", [["cat", "dog", None]])
        tables.write_table(table, file)
    told: list[str] = []
    pairs = read_pairs(config(folder, template="a $label"), lambda error: told.append(str(error)))
    assert [pair.caption for pair in pairs][:2] == ["a cat", "a dog"]
    assert "data.template needs 'label', which is empty here" in told[0]
    with pytest.raises(BadRequest, match=r"unknown column .*'lable': did you mean 'label'"):
        read_pairs(config(folder, template="a $lable"))
    with pytest.raises(ValueError, match=r"write \$\$ for the character itself"):
        config(folder, template="5 $ each")


def test_captions_that_cannot_be_encoded_and_paths_that_cannot_be_are_named(tmp_path: Path) -> None:
    folder = imagefolder(tmp_path / "data")
    row = {"file_name": "images/0.png", "text": "a", "hint": "hint/0.png"}
    json_lines(folder / "metadata.jsonl", [row | {"text": "ab\ud800"}])
    with pytest.raises(BadRequest, match=r"character 2 of the caption is half of one \(\\ud800\)"):
        read_pairs(config(folder))
    json_lines(folder / "metadata.jsonl", [row | {"hint": 5000 * "a"}])
    with pytest.raises(BadRequest, match="1 of the 2 files"):
        read_pairs(config(folder))
    with pytest.raises(ValueError, match="condition is empty: name the column"):
        config(folder, condition="")


def test_of_several_splits_the_one_to_train_on_is_read(tmp_path: Path) -> None:
    (table,) = parquet(tmp_path / "data").rglob("*.parquet")
    for split in ("train", "validation"):
        (table.parent / f"{split}-00000-of-00001.parquet").write_bytes(table.read_bytes())
    table.unlink()
    assert {Path(str(pair.picture)).name[:5] for pair in read_pairs(config(tmp_path / "data"))} == {"train"}
    imagefolder(tmp_path / "rows" / "test")
    imagefolder(tmp_path / "rows" / "train")
    assert [str(pair.picture).split("/")[-3] for pair in read_pairs(config(tmp_path / "rows"))] == ["train"] * 3
    (table.parent / "train-00000-of-00001.parquet").rename(table.parent / "more-00000-of-00001.parquet")
    assert len(read_pairs(config(tmp_path / "data"))) == 6  # none is called so: all


def test_what_may_be_either_picture_of_a_sample_is_asked(tmp_path: Path) -> None:
    """A set of names has another order in every process, so a choice between them would differ from run to run."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for extension, data in (("jpg", encode_png(picture(0))), ("png", encode_png(picture(1))), ("txt", b"x")):
            member = tarfile.TarInfo(f"0.{extension}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    for condition, other in (("png", "jpg"), ("jpg", "png")):
        (pair,) = read_pairs(config(tmp_path, condition=condition))
        assert str(pair.picture).endswith(other)
        assert str(pair.conditions[0]).endswith(condition)
    with pytest.raises(BadRequest, match=r"jpg and png may each be the picture: name its whole extension, as data\.picture=jpg"):
        read_pairs(config(tmp_path, condition="canny", extract=True))
    (pair,) = read_pairs(config(tmp_path, condition="canny", extract=True, picture="png"))
    assert str(pair.picture).endswith("png")


def test_a_cut_or_compressed_shard_is_named(tmp_path: Path) -> None:
    folder = webdataset(tmp_path / "data")
    pairs = read_pairs(config(folder))
    shard = folder / "a.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:1000])
    with pytest.raises(BadImage, match="the archive is cut"):
        load(pairs[1].picture)
    with pytest.raises(BadRequest, match="cannot be read"):
        read_pairs(config(folder))


def test_a_damaged_picture_inside_an_archive_is_named(tmp_path: Path) -> None:
    folder = webdataset(tmp_path / "data")
    pair = read_pairs(config(folder))[0]
    shard = folder / "a.tar"
    data = bytearray(shard.read_bytes())
    data[600:900] = bytes(300)
    shard.write_bytes(data)
    with pytest.raises(BadImage, match=r"a\.tar:some/0000\.png"):
        load(pair.picture)


def test_settings_that_vary_differ_between_pairs_and_never_change(tmp_path: Path) -> None:
    given = config(folders(tmp_path / "data"), condition="canny", extract=True, params={"high": 200}, vary={"low": (20, 180)})
    pairs = read_pairs(given)
    drawn = [Loader(given).params(pair).model_dump() for pair in pairs]
    assert len({values["low"] for values in drawn}) == 3
    assert all(20 <= values["low"] <= 180 and isinstance(values["low"], int) and values["high"] == 200 for values in drawn)
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    again = given.model_copy(update={"folder": moved})
    assert [Loader(again).params(pair).model_dump() for pair in read_pairs(again)] == drawn
    for wrong, message in (({"vary": {"lo": (1, 2)}}, "did you mean 'low'"), ({"extract": False}, "set data.extract")):
        with pytest.raises(BadRequest, match=message):
            Loader(config(moved, **({"condition": "canny", "extract": True, "vary": {"low": (1, 2)}} | wrong)))


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ({"high": (150, 999)}, "high = 999"),
        ({"low": (10, 250), "high": (50, 255)}, "low 250 is above high 50"),
    ],
)
def test_settings_that_could_be_drawn_and_cannot_be_are_refused_at_once(vary: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=message):
        Loader(config(tmp_path, condition="canny", extract=True, vary=vary))


def test_an_extracted_condition_is_rendering_s(tmp_path: Path) -> None:
    from controls.prepare import load_map
    from core.request import ControlUnit

    given = config(folders(tmp_path / "data"), condition="softedge", extract=True, params={"scales": 2})
    (first, *_) = read_pairs(given)
    assert isinstance(first.picture, Path)
    unit = ControlUnit(kind="softedge", image=first.picture, params={"scales": 2}, resize="crop")
    assert np.array_equal(Loader(given).condition(first), load_map(unit, 64, 64).map_HWC)


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    folder = folders(tmp_path / "data")
    (folder / "images" / "0.png").write_bytes(b"no picture")
    pairs: list[Pair] = read_pairs(config(folder))
    with pytest.raises(BadImage, match=r"0\.png"):
        Loader(config(folder)).picture(pairs[0])
