"""The decoder against OpenCV, closed forms and hostile bytes; the encoder by reading back."""

import io
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from core.errors import BadImage
from core.images import MAX_BYTES, MAX_PIXELS, decode, encode_png, read_png_text, sha256_pixels

RNG = np.random.default_rng(7)
SCENE_HWC = cv2.resize(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST)


def packed(image: PIL.Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    return packed(PIL.Image.fromarray(array), kind, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, before: bytes = b"", rows: bytes | None = None) -> bytes:
    """An 8-bit RGB PNG by hand, so that its header can lie; `before` stands ahead of the pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0" * 1000) if rows is None else rows
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def profile(space: bytes, primaries: bytes = b"rgb") -> bytes:
    """A minimal ICC v2 display profile with a linear curve; `primaries` says which channel has which of sRGB's primaries."""
    xyz = {ord("r"): (0.4361, 0.2225, 0.0139), ord("g"): (0.3851, 0.7169, 0.0971), ord("b"): (0.1431, 0.0606, 0.7141)}
    curve = b"curv" + bytes(4) + struct.pack(">I", 0) + bytes(4)

    def point(values: tuple[float, float, float]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(value * 65536) for value in values))

    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79), b"wtpt": point((0.9642, 1.0, 0.8249))}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, primary in zip((b"r", b"g", b"b"), primaries, strict=True):
            tags |= {name + b"XYZ": point(xyz[primary]), name + b"TRC": curve}
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = start + len(body)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02100000, b"mntr", space, b"XYZ ") + bytes(12) + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb(linear: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1's transfer function, 0…1 to 0…1."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def as_opencv_sees_it(data: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("data", [picture(SCENE_HWC), picture(SCENE_HWC, "WEBP", lossless=True)], ids=["png", "webp"])
def test_lossless_formats_give_the_very_pixels(data: bytes) -> None:
    image_HWC = decode(data)
    np.testing.assert_array_equal(image_HWC, SCENE_HWC)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.writeable
    assert image_HWC.flags.c_contiguous


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_match_opencv(kind: str) -> None:
    data = picture(SCENE_HWC, kind, quality=90)
    # 2 of 255: OpenCV ships its own libjpeg and libwebp, whose inverse transforms round differently.
    np.testing.assert_allclose(decode(data).astype(int), as_opencv_sees_it(data).astype(int), atol=2)


def test_a_path_and_its_bytes_are_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(picture(SCENE_HWC, "JPEG"))
    np.testing.assert_array_equal(decode(path), decode(path.read_bytes()))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_pictures_become_rgb(mode: str) -> None:
    image = PIL.Image.fromarray(SCENE_HWC).convert(mode)
    np.testing.assert_array_equal(decode(packed(image)), np.array(image.convert("RGB")))


def test_cmyk_jpeg_matches_opencv() -> None:
    data = packed(PIL.Image.fromarray(SCENE_HWC).convert("CMYK"), "JPEG", quality=95)
    # 3 of 255: OpenCV converts CMYK with a shift where Pillow rounds.
    np.testing.assert_allclose(decode(data).astype(int), as_opencv_sees_it(data).astype(int), atol=3)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp_HW = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    grey_HWC = decode(cv2.imencode(".png", ramp_HW)[1].tobytes())
    np.testing.assert_array_equal(grey_HWC[..., 0], np.rint(ramp_HW / 257).astype(np.uint8))
    colour_HWC = decode(cv2.imencode(".png", np.dstack([ramp_HW] * 3))[1].tobytes())
    # 1 of 255: Pillow keeps the upper byte of 16-bit colour, which rounds down.
    np.testing.assert_allclose(colour_HWC.astype(int), np.rint(ramp_HW / 257)[..., None].repeat(3, 2), atol=1)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(kind: str) -> None:
    alpha_HW = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    rgba_HWC = np.dstack([np.full((8, 256, 3), (200, 100, 0), np.uint8), alpha_HW])
    image_HWC = decode(picture(rgba_HWC, kind, lossless=True, exact=True))
    coverage = alpha_HW[..., None] / 255
    np.testing.assert_array_equal(image_HWC, np.rint(np.array((200, 100, 0)) * coverage + 255 * (1 - coverage)))


def test_grey_alpha_palette_alpha_and_transparent_colours_become_white() -> None:
    grey_alpha_HWC = np.dstack([np.full((4, 4), 90, np.uint8), np.array([[0, 255] * 2] * 4, np.uint8)])
    np.testing.assert_array_equal(decode(picture(grey_alpha_HWC))[0], [[255] * 3, [90] * 3] * 2)

    palette = PIL.Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    np.testing.assert_array_equal(decode(packed(palette, transparency=0))[0], [[255, 255, 255], [40, 50, 60]])
    np.testing.assert_array_equal(decode(packed(palette, transparency=b"\xff\x00"))[0], [[10, 20, 30], [255, 255, 255]])

    colour = PIL.Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    np.testing.assert_array_equal(decode(packed(colour, transparency=(4, 5, 6)))[0], [[1, 2, 3], [255, 255, 255]])

    wide = PIL.Image.fromarray(np.array([[257, 514]], np.uint16))
    np.testing.assert_array_equal(decode(packed(wide, transparency=514))[0], [[1] * 3, [255] * 3])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_colour_profile_is_converted_to_srgb(kind: str) -> None:
    ramp_HWC = np.dstack([np.tile(np.arange(256, dtype=np.uint8), (4, 1))] * 3)
    image_HWC = decode(picture(ramp_HWC, kind, lossless=True, icc_profile=profile(b"RGB ")))
    # 2 of 255: littlecms computes in 16-bit fixed point, and near black the curve is steep.
    np.testing.assert_allclose(image_HWC, 255 * srgb(ramp_HWC / 255), atol=2)

    red_HWC = np.full((4, 4, 3), (255, 0, 0), np.uint8)
    swapped_HWC = decode(picture(red_HWC, kind, lossless=True, icc_profile=profile(b"RGB ", primaries=b"gbr")))
    np.testing.assert_allclose(swapped_HWC, np.full((4, 4, 3), (0, 255, 0)), atol=2)


def test_grey_profile_is_converted_too_and_alpha_kept() -> None:
    ramp_HW = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    expected_HW = 255 * srgb(ramp_HW / 255)
    image_HWC = decode(picture(ramp_HW, icc_profile=profile(b"GRAY")))
    np.testing.assert_allclose(image_HWC, expected_HW[..., None].repeat(3, 2), atol=2)
    half_HWC = decode(picture(np.dstack([ramp_HW, np.full_like(ramp_HW, 0)]), icc_profile=profile(b"GRAY")))
    assert (half_HWC == 255).all()


@pytest.mark.parametrize("bad", [b"not a profile", profile(b"GRAY"), profile(b"RGB ")[:200]], ids=["noise", "grey for colour", "cut"])
def test_a_profile_that_cannot_be_used_is_ignored(bad: bytes) -> None:
    np.testing.assert_array_equal(decode(picture(SCENE_HWC, icc_profile=bad)), SCENE_HWC)


@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01", b"Exif\0\0XXXXXXXX", b"Exif\0\0"], ids=["cut", "noise", "empty"])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes) -> None:
    data = picture(SCENE_HWC, "JPEG", exif=exif)
    np.testing.assert_allclose(decode(data).astype(int), as_opencv_sees_it(data).astype(int), atol=2)  # as above


# What a camera stores for each orientation: the inverse of what a viewer has to do. Source: EXIF 2.3, table 6.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_all_orientations_give_equal_pixels(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    stored_HWC = np.ascontiguousarray(STORED[orientation](SCENE_HWC))
    for kind in ("PNG", "WEBP"):
        np.testing.assert_array_equal(decode(picture(stored_HWC, kind, lossless=True, exif=exif)), SCENE_HWC, err_msg=kind)
    jpeg = picture(stored_HWC, "JPEG", quality=100, subsampling=0, exif=exif)
    np.testing.assert_allclose(decode(jpeg).astype(int), as_opencv_sees_it(jpeg).astype(int), atol=2)  # as above
    np.testing.assert_allclose(decode(jpeg).astype(int), SCENE_HWC.astype(int), atol=3)  # blocks of one colour: only rounding is lost


def test_only_the_first_frame_is_read() -> None:
    frames = [PIL.Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    for kind in ("PNG", "WEBP"):
        data = packed(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        np.testing.assert_array_equal(decode(data), np.full((16, 16, 3), (255, 0, 0)), err_msg=kind)


def test_nothing_of_the_inputs_metadata_reaches_an_output() -> None:
    exif = PIL.Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngInfo()
    text.add_text("Author", "SecretAuthor")
    for data in (picture(SCENE_HWC, "JPEG", exif=exif, comment=b"SecretComment"), picture(SCENE_HWC, pnginfo=text, exif=exif)):
        assert b"Secret" in data
        written = encode_png(decode(data))
        assert b"Secret" not in written
        assert b"eXIf" not in written


ZEROS = zlib.compress(bytes(64 << 20))
JPEG = picture(SCENE_HWC, "JPEG")
WEBP = picture(SCENE_HWC, "WEBP", lossless=True)
BOMBS = {
    "png 60000x60000": png(60000, 60000),
    "png 13000x13000": png(13000, 13000),
    "png 4097x4096": png(4097, 4096),
    "png one endless row": png(2**31 - 1, 1),
    "png text of 64 MiB": png(8, 8, chunk(b"zTXt", b"k\0\0" + ZEROS)),
    "png 200 texts of 1 MiB": png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes((1 << 20) - 1))) * 200),
    "png utf-8 text of 64 MiB": png(8, 8, chunk(b"iTXt", b"k\0\1\0\0\0" + ZEROS)),
    "png profile of 64 MiB": png(8, 8, chunk(b"iCCP", b"k\0\0" + ZEROS)),
    "png pixels of 64 MiB for 8x8": png(8, 8, rows=ZEROS),
    "webp 16384x16384": WEBP[: (at := WEBP.index(b"VP8L") + 9)] + b"\xff\xff\xff\x0f" + WEBP[at + 4 :],
    "jpeg 65500x65500": JPEG[: (at := JPEG.index(b"\xff\xc0") + 5)] + b"\xff\xdc" * 2 + JPEG[at + 4 :],
    "jpeg with 100000 scans": JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") :][:12] * 100_000 + b"\xff\xd9",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_defused_at_once(name: str) -> None:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        try:
            image_HWC = decode(BOMBS[name])
        except BadImage:
            pass
        else:  # what could explode was never needed: the picture itself is small and whole
            assert image_HWC.shape == (8, 8, 3)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05  # of this process, and the best of three: other processes share this machine


def test_limits_stand_in_the_message(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"4097x4096 pixels \(16\.8 Mpx\), over the limit of 16\.8 Mpx: make it smaller"):
        decode(png(4097, 4096))
    with pytest.raises(BadImage, match=r"20\.0 MiB, over the limit of 20 MiB: make it smaller"):
        decode(bytes(MAX_BYTES + 1))
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES * 50)  # sparse: it would be noticed if it were read
    with pytest.raises(BadImage, match=r"'.*big\.png' has 1000\.0 MiB"):
        decode(path)


def test_the_largest_picture_allowed_is_decoded() -> None:
    assert decode(packed(PIL.Image.new("1", (4096, 4096)))).size == 3 * MAX_PIXELS


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "JPEG2000"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadImage, match=r"is not a PNG, JPEG or WebP picture .* convert it to PNG"):
        decode(picture(SCENE_HWC, kind))


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>", b"%!PS-Adobe-3.0", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]
)
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(BadImage):
        decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_pictures_are_refused(kind: str) -> None:
    data = picture(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), kind, quality=80)
    for length in np.linspace(0, len(data) * 0.9, 50).astype(int):
        with pytest.raises(BadImage):
            decode(data[:length])


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"'.*absent\.png' is missing: give the path"):
        decode(tmp_path / "absent.png")
    for path in (tmp_path, Path("/dev/zero"), Path("nul\0byte.png"), Path("x" * 5000)):
        with pytest.raises(BadImage) as caught:
            decode(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(BadImage) as caught:
        decode(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def mutations(seeds: list[bytes], count: int) -> list[bytes]:
    """Damaged pictures: bytes changed, cut out, doubled, or spliced from another file."""
    rng = np.random.default_rng(2026)
    out = []
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(rng.integers(1, 8)):
            at = int(rng.integers(0, len(data)) if rng.random() < 0.5 else rng.integers(0, min(200, len(data))))  # headers are richer
            match rng.integers(0, 5):
                case 0:
                    data[at] = rng.integers(0, 256)
                case 1:
                    data[at : at + 4] = struct.pack(">I", rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 255]))
                case 2:
                    del data[at : at + int(rng.integers(1, 64))]
                case 3:
                    data[at:at] = data[at : at + int(rng.integers(1, 64))]
                case 4:
                    other = seeds[rng.integers(0, len(seeds))]
                    data[at : at + 32] = other[at : at + 32]
            if not data:
                break
        out.append(bytes(data))
    return out


def test_ten_thousand_mutated_pictures_raise_nothing_but_bad_image() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "camera"
    icc = profile(b"RGB ")
    small_HWC = SCENE_HWC[:32, :48]
    seeds = [
        picture(small_HWC, exif=exif, icc_profile=icc),
        packed(PIL.Image.fromarray(small_HWC).convert("P"), transparency=3),
        cv2.imencode(".png", small_HWC.astype(np.uint16) * 257)[1].tobytes(),
        picture(np.dstack([small_HWC, small_HWC[..., :1]])),
        picture(small_HWC, "JPEG", exif=exif, icc_profile=icc),
        picture(small_HWC, "JPEG", progressive=True),
        packed(PIL.Image.fromarray(small_HWC).convert("CMYK"), "JPEG"),
        picture(small_HWC, "WEBP", exif=exif, icc_profile=icc),
        picture(np.dstack([small_HWC, small_HWC[..., :1]]), "WEBP", lossless=True),
        packed(PIL.Image.fromarray(small_HWC), "WEBP", save_all=True, append_images=[PIL.Image.new("RGB", (48, 32))]),
    ]
    messages, slowest = [], 0.0
    for data in mutations(seeds, 10_000):
        start = time.process_time()
        try:
            image_HWC = decode(data)
        except BadImage as error:
            messages.append(str(error))
        else:
            assert image_HWC.dtype == np.uint8
            assert image_HWC.ndim == 3
            assert image_HWC.shape[2] == 3
        slowest = max(slowest, time.process_time() - start)
    assert not any("\n" in message for message in messages)
    assert 3000 < len(messages) < 10_000  # otherwise the mutations are too weak or too strong to say anything
    assert slowest < 0.25


def test_png_round_trip_with_text_of_every_kind(tmp_path: Path) -> None:
    text = {
        "latin": "café",
        "unicode": "猫 🐈 — “quoted”",
        "lines": 'a\n"b"\t\\',
        "empty": "",
        "long": "猫" * 700_000,
        "plain": "x" * (2 << 20),
    }
    path = tmp_path / "picture.png"
    path.write_bytes(encode_png(SCENE_HWC, text))
    assert read_png_text(path) == text
    np.testing.assert_array_equal(decode(path), SCENE_HWC)


def test_text_is_read_from_pngs_only(tmp_path: Path) -> None:
    jpeg, cut = tmp_path / "picture.jpg", tmp_path / "cut.png"
    jpeg.write_bytes(picture(SCENE_HWC, "JPEG"))
    cut.write_bytes(picture(SCENE_HWC)[:20])
    for path in (jpeg, cut, tmp_path / "absent.png", tmp_path):
        with pytest.raises(BadImage) as caught:
            read_png_text(path)
        assert "\n" not in str(caught.value)


def test_equal_pixels_have_equal_hashes_and_others_have_not() -> None:
    assert sha256_pixels(SCENE_HWC) == sha256_pixels(decode(picture(SCENE_HWC))) == sha256_pixels(np.asfortranarray(SCENE_HWC))
    different = [SCENE_HWC.reshape(32, 192, 3), SCENE_HWC ^ np.uint8(1), SCENE_HWC.view(np.int8)]
    assert len({sha256_pixels(array) for array in [SCENE_HWC, *different]}) == 4
