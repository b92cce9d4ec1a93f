"""The one way in and out of picture files: hostile bytes in, RGB uint8 HWC out; and PNG bytes with text inside.

Every picture, map and mask that a user gives passes through `decode`. What the file says about itself is applied and then
dropped: orientation is turned, the colour profile is converted to sRGB, transparency is laid on white.
"""

import hashlib
import io
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile, PngInfo
from PIL.WebPImagePlugin import WebPImageFile

from core.errors import BadImage

Image = NDArray[np.uint8]  # RGB, HWC

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 4096 * 4096
MAX_JPEG_SCANS = 100  # a progressive picture has about ten; a hostile one has a million, each as slow as the whole picture

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND"}  # all that decides what the pixels look like
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}

# Pillow's remarks about odd metadata are not the user's business: we drop the metadata.
warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(source: bytes | Path) -> Image:
    """The picture in a PNG, JPEG or WebP file, as RGB uint8 HWC in sRGB.

    First frame; EXIF orientation applied; colour profile converted (one that cannot be used is ignored, as browsers do);
    16 bits scaled to 8; transparency on white. At most `MAX_BYTES` and `MAX_PIXELS`, checked before any pixel is decoded.

    Raises:
        BadImage: no such file, another format, over a limit, or damaged; nothing else, whatever the bytes are.
    """
    name, data = _read(source)
    try:
        image = _open(data, name)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(
                f"{name} is {width}x{height} pixels ({width * height / 1e6:.1f} Mpx), over the limit of {MAX_PIXELS / 1e6:.1f} Mpx: "
                "make it smaller"
            )
        image.load()
        return _pixels(image)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes, SyntaxError included
        raise BadImage(f"{name} is damaged and cannot be decoded ({_reason(error)}): save it again as PNG") from error


def encode_png(image_HWC: Image, text: Mapping[str, str] | None = None) -> bytes:
    """The picture as PNG bytes with `text` in its text chunks, stored plain so that readers find them before the pixels.

    Fast rather than small: zlib level 1. Keys are Latin-1, at most 79 characters; values are any text.
    """
    info = PngInfo()
    for key, value in (text or {}).items():
        info.add_text(key, value)
    out = io.BytesIO()
    PIL.Image.fromarray(image_HWC).save(out, "PNG", pnginfo=info, compress_level=1)
    return out.getvalue()


def read_png_text(path: Path) -> dict[str, str]:
    """The text chunks of a PNG file that stand before its pixels; no pixel is read, so the file may be of any size.

    Raises:
        BadImage: no such file, not a PNG, or damaged.
    """
    name = repr(str(path))
    try:
        with path.open("rb") as file:
            if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
                raise BadImage(f"{name} is not a PNG file: only PNG files carry Limn's record")
            file.seek(0)
            # Values of other types are not text: gamma, resolution, the transparent colour.
            return {str(key): str(value) for key, value in PngImageFile(file).info.items() if isinstance(value, str)}
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"{name} cannot be read ({_reason(error)}): give the path of an undamaged PNG file") from error


def sha256_pixels(image: NDArray[Any]) -> str:
    """SHA-256, in hex, of an array's type, shape and values: equal pictures give equal hashes, however they were stored."""
    digest = hashlib.sha256(f"{image.dtype.str}{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _read(source: bytes | Path) -> tuple[str, bytes]:
    """What to call the picture in messages, and its bytes."""
    if isinstance(source, bytes):
        name, data = "the picture", source
        size = len(data)
    else:
        name = repr(str(source))
        try:
            if not source.is_file():
                raise BadImage(f"{name} is {'not a file' if source.exists() else 'missing'}: give the path of a PNG, JPEG or WebP file")
            size = source.stat().st_size
            data = source.read_bytes() if size <= MAX_BYTES else b""
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise BadImage(f"{name} cannot be read ({_reason(error)}): give the path of a PNG, JPEG or WebP file") from None
    if size > MAX_BYTES:
        raise BadImage(f"{name} has {size / 2**20:.1f} MiB, over the limit of {MAX_BYTES // 2**20} MiB: make it smaller")
    return name, data


def _reason(error: Exception) -> str:
    """An error's own words, in one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())


def _open(data: bytes, name: str) -> ImageFile:
    """The file's header, parsed; its pixels not yet decoded."""
    if data.startswith(_PNG_SIGNATURE):
        return PngImageFile(io.BytesIO(_without_text(data)))
    if data.startswith(b"\xff\xd8\xff"):
        scans = data.count(b"\xff\xda")
        if scans > MAX_JPEG_SCANS:
            raise BadImage(f"{name} has {scans} JPEG scans, over the limit of {MAX_JPEG_SCANS}: save it again as PNG")
        return JpegImageFile(io.BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile(io.BytesIO(data))
    raise BadImage(f"{name} is not a PNG, JPEG or WebP picture (it begins with {data[:8]!r}): convert it to PNG")


def _without_text(data: bytes) -> bytes:
    """A PNG reduced to the chunks that decide its pixels: compressed text can be a bomb, animation is not wanted."""
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 12 + length
        if kind in _PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _pixels(image: PIL.Image.Image) -> Image:
    """A loaded picture as RGB uint8 HWC: orientation, depth, profile and transparency resolved."""
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    alpha = None
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it
        grey = np.asarray(image).astype(np.uint32)
        if (key := image.info.get("transparency")) is not None:
            alpha = PIL.Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8))
        profile = image.info.get("icc_profile")
        image = PIL.Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    else:
        profile = image.info.get("icc_profile")
        if image.has_transparency_data:
            image = image.convert("RGBA") if image.mode != "LA" else image
            alpha = image.getchannel("A")
    rgb = _to_srgb(image, profile)
    if alpha is not None:
        rgb = PIL.Image.composite(rgb, PIL.Image.new("RGB", rgb.size, "white"), alpha)
    return np.array(rgb)


def _orientation(image: PIL.Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):  # an unreadable EXIF block turns nothing
        return 1


def _to_srgb(image: PIL.Image.Image, profile_bytes: bytes | None) -> PIL.Image.Image:
    """The picture's colours as RGB in sRGB, without its alpha."""
    rgb = image.convert("RGBA").convert("RGB") if image.has_transparency_data else image.convert("RGB")
    if not profile_bytes:
        return rgb
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(profile_bytes))
        match profile.profile.xcolor_space.strip(), image.mode:
            case "RGB", mode if mode != "CMYK":
                return _converted(rgb, profile)
            case "CMYK", "CMYK":
                return _converted(image, profile)
            case "GRAY", "1" | "L" | "LA":
                # littlecms optimises a grey curve coarsely; exact on its 256 values is also faster.
                ramp = PIL.Image.frombytes("L", (256, 1), bytes(range(256)))
                table_VC = np.asarray(_converted(ramp, profile, ImageCms.Flags.NOOPTIMIZE))[0]
                return rgb.point(table_VC.T.ravel().tolist())
    except (OSError, ImageCms.PyCMSError):
        pass
    return rgb


def _converted(image: PIL.Image.Image, profile: ImageCms.ImageCmsProfile, flags: ImageCms.Flags = ImageCms.Flags.NONE) -> PIL.Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB", flags=flags)
    assert converted is not None  # only a conversion in place returns nothing
    return converted
