"""Decode images of the supported formats, as a viewer shows them."""

from __future__ import annotations

import io

import numpy as np
from PIL import ExifTags, Image

# Pillow's formats without those that start other programs (EPS) or decode on opening (ICO).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# What turns the stored pixels upright, by the value of the EXIF tag Orientation (TIFF 6.0,
# section 8); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image to RGB; of an animation, the first frame.

    It is turned as its EXIF orientation demands. Shades of 16 bits are reduced to 8.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: the image is broken or
            huge.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
            image.load()
            return upright(_to_8_bits(image).convert("RGB"), like=image)
    except (*BROKEN, MemoryError):
        raise
    except Exception as error:  # Pillow's readers can raise anything for damaged bytes
        raise ValueError(f"{type(error).__name__}: {error}") from error


def upright(image: Image.Image, *, like: Image.Image) -> Image.Image:
    """Turn an image upright.

    Args:
        image: to be turned.
        like: the loaded image whose EXIF orientation decides. A TIFF file has none anymore: Pillow
            turns it while loading.

    Returns:
        The image itself if it is upright.
    """
    turn = _TURNS.get(_orientation(like))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1 if there is none, or if the EXIF data is broken."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - broken EXIF data raises anything, of a good picture
        return 1
    return found if isinstance(found, int) else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Reduce shades of 16 bits to 8, which Pillow's conversion to RGB would cut off at 255."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def image_size(encoded: bytes) -> tuple[int, int]:
    """Return the width and height of an image, in stored pixels, without decoding it.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: as for
            :func:`decode_image`.
    """
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        return image.size


def is_image(content: bytes) -> bool:
    """Return whether bytes begin like an image of a known format; nothing is decoded."""
    try:
        image_size(content)
    except Image.DecompressionBombError:
        return True  # an image, although decode_image refuses it
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - Pillow's readers can raise anything for damaged bytes
        return False
    return True
