"""hifi.tasks.image: images become pixels, at once or batch by batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from hifi.backbones.models import load_config, load_image_processor, resolve_model
from hifi.data.images import decode_image
from hifi.data.splits import load_split
from hifi.errors import DataError, ModelError
from hifi.tasks import image as image_module
from hifi.tasks.image import ImageEncoder
from tests.tiny_tasks import image_rows, png, save_image_model


def encoder(folder: Path) -> ImageEncoder:
    source = resolve_model(folder)
    processor = load_image_processor(source)
    return ImageEncoder(processor, config=load_config(source), column="image")


def encode(made: ImageEncoder, rows):
    targets = torch.arange(len(rows))
    return made.encode(load_split(rows, split="train"), split="train", targets=targets)


@pytest.fixture
def made(tmp_path: Path) -> ImageEncoder:
    return encoder(save_image_model(tmp_path))


class TestPixels:
    def test_are_scaled_and_normalised(self, made: ImageEncoder):
        rows = [{"image": {"bytes": png(shade), "path": None}} for shade in (0, 255)]
        batch = encode(made, rows).batch([1, 0])
        pixels = batch.inputs["pixel_values"]
        assert pixels.shape == (2, 3, 8, 8)
        assert pixels[0].unique().tolist() == pytest.approx([1.0])
        assert pixels[1].unique().tolist() == pytest.approx([-1.0])
        assert batch.targets.tolist() == [1, 0]

    @pytest.mark.parametrize("size", [(3, 3), (1, 9), (9, 1), (3, 5), (5, 3), (40, 30)])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_any_image_is_resized(self, made: ImageEncoder, size: tuple[int, int], mode: str):
        pixels = made.pixels([png(255, size=size, mode=mode)])
        assert pixels.shape == (1, 3, 8, 8)
        assert pixels[0, 0].unique().tolist() == pytest.approx([1.0])

    def test_are_the_same_cached_or_recomputed(
        self, made: ImageEncoder, monkeypatch: pytest.MonkeyPatch
    ):
        rows = image_rows(9)
        kept = encode(made, rows)
        monkeypatch.setattr(image_module, "_KEPT_BYTES", 100)
        anew = encode(made, rows)
        decoded: list[bytes] = []

        def decode(encoded: bytes) -> Image.Image:
            decoded.append(encoded)
            return decode_image(encoded)

        monkeypatch.setattr(image_module, "decode_image", decode)
        for indices in ([3], np.array([8, 0, 5])):
            first = kept.batch(indices)
            assert not decoded
            second = anew.batch(indices)
            assert len(decoded) == len(indices)
            decoded.clear()
            assert first.inputs["pixel_values"].equal(second.inputs["pixel_values"])
            assert first.targets.equal(second.targets)
        assert kept.digest() == anew.digest()

    def test_of_real_images(self, test_data: Path):
        made = encoder(test_data / "models" / "vit-cifar10-4L4H64")
        path = test_data / "data" / "mnist" / "validation.parquet"
        dataset = load_split(path, split="train").select(range(20))
        examples = made.encode(dataset, split="train", targets=torch.zeros(20))
        reference = tf.AutoImageProcessor.from_pretrained(
            test_data / "models" / "vit-cifar10-4L4H64", backend="pil"
        )
        expected = reference([image.convert("RGB") for image in dataset["image"]])
        for index, pixels in enumerate(examples.batch(range(20)).inputs["pixel_values"]):
            assert np.array_equal(pixels.numpy(), expected["pixel_values"][index])
        assert made.sequence_length == 65

    def test_of_decoded_images_are_those_of_encoded_ones(self, made: ImageEncoder):
        encoded = [png(shade, size=(5, 9), mode="RGB") for shade in (0, 128, 255)]
        assert made.scale([decode_image(each) for each in encoded]).equal(made.pixels(encoded))


class TestSequenceLength:
    def test_counts_patches_and_the_class_token(self, made: ImageEncoder):
        assert made.sequence_length == 2 * 2 + 1
        assert encode(made, image_rows(3)).lengths.tolist() == [5, 5, 5]


class TestRefusals:
    def test_a_processor_of_another_size(self, tmp_path: Path):
        save_image_model(tmp_path)
        tf.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"\(3, 16, 16\).*\(3, 8, 8\)"):
            encoder(tmp_path)

    def test_a_model_of_other_channels(self, tmp_path: Path):
        save_image_model(tmp_path, num_channels=1)
        with pytest.raises(ModelError, match=r"\(1, 8, 8\)"):
            encoder(tmp_path)

    def test_a_broken_image_names_its_row(self, made: ImageEncoder):
        rows = image_rows(3)
        rows[2]["image"]["bytes"] = b"broken"
        with pytest.raises(DataError) as caught:
            encode(made, rows)
        assert (caught.value.row, caught.value.column) == (3, "image")


class TestDigest:
    def test_is_of_images_and_targets(self, made: ImageEncoder):
        digest = encode(made, image_rows(3)).digest()
        assert encode(made, image_rows(3)).digest() == digest
        assert encode(made, image_rows(3)[::-1]).digest() != digest
        assert encode(made, image_rows(2)).digest() != digest

    @pytest.mark.parametrize("entry", [{"image_mean": [0.1, 0.5, 0.5]}, {"do_normalize": False}])
    def test_is_of_how_images_become_pixels(self, entry: dict, tmp_path: Path):
        before = encode(encoder(save_image_model(tmp_path)), image_rows(2))
        path = tmp_path / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entry))
        after = encode(encoder(tmp_path), image_rows(2))
        first, second = (each.batch([0]).inputs["pixel_values"] for each in (before, after))
        assert not first.equal(second)
        assert before.digest() != after.digest()

    def test_is_not_of_paths(self, made: ImageEncoder):
        rows = image_rows(2)
        digest = encode(made, rows).digest()
        rows[0]["image"]["path"] = "elsewhere.png"
        assert encode(made, rows).digest() == digest


def test_a_decoded_image_in_memory_is_read(made: ImageEncoder):
    rows = [{"image": Image.new("L", (8, 8), 255)}]
    assert encode(made, rows).batch([0]).inputs["pixel_values"].unique().tolist() == [1.0]
