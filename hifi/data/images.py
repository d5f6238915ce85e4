"""Decode images of the supported formats."""

from __future__ import annotations

import io

from PIL import Image

# Pillow's formats without those that start other programs (EPS) or decode on opening (ICO).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: the image is broken or
            huge.
    """
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        return image.convert("RGB")


def image_size(encoded: bytes) -> tuple[int, int]:
    """Return the width and height of an image, in pixels, without decoding it.

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
