"""hifi.data.images: pictures are decoded as a viewer shows them."""

from __future__ import annotations

import base64
import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hifi.backbones.models import load_config, load_image_processor, resolve_model
from hifi.data.columns import read_images
from hifi.data.images import BROKEN, decode_image
from hifi.data.splits import load_split
from hifi.tasks.base import Sample
from hifi.tasks.image import ImageEncoder
from tests.tiny_tasks import save_image_model

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
BLOCK = 16  # pixels of a colour, so that lossy formats keep it
# The picture upright: red and green above, blue and white below.
UPRIGHT = [[RED, GREEN], [BLUE, WHITE]]
# The stored pixels that each orientation turns upright (TIFF 6.0: where row 0 and column 0 lie).
STORED = {
    1: [[RED, GREEN], [BLUE, WHITE]],
    2: [[GREEN, RED], [WHITE, BLUE]],
    3: [[WHITE, BLUE], [GREEN, RED]],
    4: [[BLUE, WHITE], [RED, GREEN]],
    5: [[RED, BLUE], [GREEN, WHITE]],
    6: [[GREEN, WHITE], [RED, BLUE]],
    7: [[WHITE, GREEN], [BLUE, RED]],
    8: [[BLUE, RED], [WHITE, GREEN]],
}
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF")  # those that can carry an orientation


def picture(colours: list[list[tuple[int, int, int]]], *, mode: str = "RGB") -> Image.Image:
    pixels = np.array(colours, dtype=np.uint8).repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, orientation: int | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    if orientation is not None and kind == "TIFF":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = orientation
        options["tiffinfo"] = tags
    elif orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(image: Image.Image) -> list[list[tuple[int, ...]]]:
    """Return the colour of each quarter, rounded to full or none."""
    (width, height), half = image.size, BLOCK // 2
    places = [[(half, half), (width - half, half)], [(half, height - half), (-half, -half)]]
    places[1][1] = (width - half, height - half)
    return [
        [tuple(255 * round(value / 255) for value in image.getpixel(place)) for place in row]
        for row in places
    ]


@pytest.mark.parametrize("kind", FORMATS)
class TestOrientations:
    @pytest.mark.parametrize("orientation", STORED)
    def test_are_all_turned_upright(self, kind: str, orientation: int):
        image = decode_image(encode(picture(STORED[orientation]), kind, orientation))
        assert (image.mode, corners(image)) == ("RGB", UPRIGHT)

    def test_exchange_width_and_height(self, kind: str):
        image = decode_image(encode(Image.new("RGB", (20, 10)), kind, 6))
        assert image.size == (10, 20)

    @pytest.mark.parametrize("orientation", [None, 0, 9, 65535])
    def test_that_mean_nothing_leave_the_picture(self, kind: str, orientation: int | None):
        if kind == "TIFF" and orientation == 65535:
            pytest.skip("Pillow does not write this one")
        assert corners(decode_image(encode(picture(UPRIGHT), kind, orientation))) == UPRIGHT

    def test_are_the_same_in_training_and_prediction(self, kind: str, tmp_path: Path):
        source = resolve_model(save_image_model(tmp_path))
        encoder = ImageEncoder(
            load_image_processor(source), config=load_config(source), column="image"
        )
        turned = encode(picture(STORED[6]), kind, 6)
        upright = encoder.scale([decode_image(encode(picture(STORED[1]), kind))])[0]
        rows = [{"image": {"bytes": turned, "path": None}}]
        images = read_images(load_split(rows, split="train"), "image", split="train")
        trained = encoder.pixels(images)[0]
        (predicted,) = encoder.read([{"image": base64.b64encode(turned).decode()}], truncate=True)
        assert isinstance(predicted, Sample)
        assert predicted.inputs["pixel_values"].equal(trained)
        assert (trained - upright).abs().max() < 0.1  # JPEG and WebP round


class TestBrokenExif:
    def good_exif(self) -> bytes:
        exif = Image.Exif()
        exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a description", 72.0
        exif[0x8769] = {0x9003: "2020:01:01 00:00:00"}
        return exif.tobytes()

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize(
        "exif",
        [
            b"Exif\0\0",
            b"Exif\0\0garbage",
            b"Exif\0\0II*\0\xff\xff\xff\x7f",
            b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
            b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0\xff\xff\xff\xff\0\0\0\0",
        ],
    )
    def test_leaves_a_good_picture(self, kind: str, exif: bytes):
        image = decode_image(encode(picture(UPRIGHT), kind, exif=exif))
        assert corners(image) == UPRIGHT

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    def test_of_any_bytes_leaves_a_good_picture(self, kind: str):
        generator = random.Random(0)  # noqa: S311 - a draw, not a secret
        for _ in range(150):
            exif = bytearray(self.good_exif())
            for _ in range(generator.randint(1, 10)):
                exif[generator.randrange(6, len(exif))] = generator.randrange(256)
            encoded = encode(picture(UPRIGHT), kind, exif=bytes(exif))
            found = {colour for row in corners(decode_image(encoded)) for colour in row}
            assert found == {RED, GREEN, BLUE, WHITE}

    @pytest.mark.filterwarnings("ignore")
    def test_of_a_tiff_file_names_itself_at_most(self):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112], tags[0x010E] = 6, "a description"
        whole = encode(picture(UPRIGHT), "TIFF", tiffinfo=tags)
        generator = random.Random(0)  # noqa: S311 - as above
        for _ in range(300):
            broken = bytearray(whole)
            for _ in range(generator.randint(1, 6)):
                broken[generator.randrange(4, len(whole))] = generator.randrange(256)
            try:
                decode_image(bytes(broken))
            except BROKEN:
                continue

    def test_of_a_tiff_directory_beside_the_picture(self):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[0x0112] = 6
        tags.tagtype[0x8769], tags[0x8769] = 4, 0x7FFFFFF0  # the EXIF directory lies nowhere
        image = decode_image(encode(picture(STORED[6]), "TIFF", tiffinfo=tags))
        assert corners(image) == UPRIGHT

    def test_an_error_that_pillow_does_not_document_is_one_of_ours(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        def fail(*_: object, **__: object) -> None:
            raise struct.error("unpack requires a buffer of 4 bytes")

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(ValueError, match="error: unpack requires"):
            decode_image(b"")


class TestModes:
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_of_print_colours(self, orientation: int):
        image = picture(STORED[orientation], mode="CMYK")
        assert corners(decode_image(encode(image, "JPEG", orientation))) == UPRIGHT

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_shades_of_16_bits_are_not_cut_off(self, kind: str):
        shades = Image.fromarray(np.array([[0, 0x1234, 0x8000, 0xFFFF]], dtype=np.uint16))
        pixels = np.asarray(decode_image(encode(shades, kind)))[0, :, 0]
        assert pixels.tolist() == [0, 0x12, 0x80, 0xFF]

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_of_an_animation_the_first_frame_is_read(self, kind: str):
        frames = [picture(UPRIGHT), picture(STORED[3])]
        encoded = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert corners(decode_image(encoded)) == UPRIGHT

    def test_a_palette_is_turned_too(self):
        image = picture(STORED[8]).quantize(8)
        assert corners(decode_image(encode(image, "PNG", 8))) == UPRIGHT

    def test_exif_behind_the_pixels_counts(self):
        encoded = encode(picture(STORED[6]), "PNG", 6)
        start = encoded.index(b"eXIf") - 4
        length = 12 + int.from_bytes(encoded[start : start + 4], "big")
        chunk, rest = encoded[start : start + length], encoded[:start] + encoded[start + length :]
        end = rest.index(b"IEND") - 4
        assert corners(decode_image(rest[:end] + chunk + rest[end:])) == UPRIGHT
