"""Encoded images: which formats are read, and how."""

from __future__ import annotations

import io

from PIL import Image

# Of what Pillow reads: no format that starts other programs (EPS) or is decoded on opening (ICO).
_FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image to RGB.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: it is broken or huge.
    """
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        return image.convert("RGB")


def image_size(encoded: bytes) -> tuple[int, int]:
    """Read width and height of an image, in pixels, without decoding it.

    Raises:
        OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError: as for
            :func:`decode_image`.
    """
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        return image.size


def is_image(content: bytes) -> bool:
    """Tell whether bytes begin as an image of a known format does; nothing is decoded."""
    try:
        image_size(content)
    except Image.DecompressionBombError:
        return True  # an image, though one that nobody will decode
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged bytes make Pillow's readers raise anything at all
        return False
    return True
