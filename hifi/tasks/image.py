"""Images: decoded and scaled once if the pixels fit in memory, else for every batch."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from hifi.backbones.models import load_image_processor
from hifi.canonical import canonical_json
from hifi.data.columns import read_images
from hifi.data.images import decode_image, image_size
from hifi.data.task_types import IMAGE_INPUT
from hifi.errors import ImageInputError, InputError, ModelError
from hifi.tasks.base import Batch, Encoder, Examples, Sample, Task, digest_of

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig
    from transformers.image_processing_utils import BaseImageProcessor

    from hifi.backbones.models import ModelSource

_KEPT_BYTES = 1 << 30  # pixels of one split; if there are more, they are decoded in every epoch
_CHUNK = 256
_IMAGE = IMAGE_INPUT.fields[0].name
# Limits the memory of a few images decoded at once; cameras make half as many pixels.
_MOST_PIXELS = 1 << 25


@dataclass(frozen=True, kw_only=True)
class ImageTask(Task):
    """Base class of tasks on images; ``inputs`` is one image column."""

    @classmethod
    def set_padding(cls, source: ModelSource, config: PreTrainedConfig) -> None:
        """Leave the configuration as it is: images are not padded."""

    @classmethod
    def load_processor(
        cls,
        source: ModelSource,
        config: PreTrainedConfig,  # noqa: ARG003 - images need no padding
        *,
        record: Mapping[str, Any],  # noqa: ARG003 - as above
    ) -> BaseImageProcessor:
        """Load the image processor."""
        return load_image_processor(source)

    def load_encoder(
        self,
        source: ModelSource,
        config: PreTrainedConfig,
        *,
        max_length: int,  # noqa: ARG002 - the model fixes the length of an image
    ) -> ImageEncoder:
        """Load the model's image processor."""
        (column,) = self.inputs
        return ImageEncoder(load_image_processor(source), config=config, column=column)


class ImageEncoder(Encoder):
    """An image processor with its settings.

    Args:
        processor: the model's.
        config: the model's; has the size of its images.
        column: the image column.

    Attributes:
        settings: of the processor, as canonical JSON.

    Raises:
        ModelError: the processor's images do not have the shape that the model reads.
    """

    def __init__(
        self, processor: BaseImageProcessor, *, config: PreTrainedConfig, column: str
    ) -> None:
        height, width = _pair(config.image_size)
        patch_height, patch_width = _pair(config.patch_size)
        self.sequence_length = (height // patch_height) * (width // patch_width) + 1
        self.metadata = {"image": column}
        self.settings = canonical_json(processor.to_dict())
        self._processor = processor
        self._column = column
        made = tuple(self.scale([Image.new("RGB", (width, height))]).shape[1:])
        wanted = (int(config.num_channels), height, width)
        if made != wanted:
            raise ModelError(
                f"the image processor makes images of shape {made} (channels, height, width) "
                f"but the model reads {wanted}"
            )

    def pixels(self, images: Sequence[bytes]) -> Tensor:
        """Decode and scale encoded images: float32 ``[B, channels, height, width]``."""
        return self.scale([decode_image(image) for image in images])

    def scale(self, images: Sequence[Image.Image]) -> Tensor:
        """Scale decoded images: float32 ``[B, channels, height, width]``."""
        pixels: Tensor = self._processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def encode(self, dataset: Dataset, *, split: str, targets: Tensor) -> EncodedImages:
        """Check the images of a split, and decode them if the pixels fit in memory."""
        images = read_images(dataset, self._column, split=split)
        return EncodedImages(images, encoder=self, targets=targets)

    def read(
        self,
        inputs: Sequence[Mapping[str, Any]],
        *,
        truncate: bool,  # noqa: ARG002 - an image is never cut
    ) -> list[Sample | InputError]:
        """Decode and scale one image at a time, since decoding may take much memory."""
        return [self._read_one(given) for given in inputs]

    def _read_one(self, given: Mapping[str, Any]) -> Sample | InputError:
        for name in sorted(given.keys() - {_IMAGE}):
            return InputError(f"the task reads an image, not {name}", param=name)
        if _IMAGE not in given:
            return InputError("the task reads images: image is missing", param=_IMAGE)
        try:
            encoded = base64.b64decode(given[_IMAGE], validate=True)
        except (binascii.Error, ValueError):
            return ImageInputError("the image is not base64", param=_IMAGE)
        image = _decode(encoded)
        if isinstance(image, InputError):
            return image
        return Sample({"pixel_values": self.scale([image])[0]}, {}, self.sequence_length)


def _decode(encoded: bytes) -> Image.Image | ImageInputError:
    """Decode an untrusted image; return an error if it cannot be decoded."""
    try:
        width, height = image_size(encoded)
        if width * height <= _MOST_PIXELS:
            return decode_image(encoded)
    except Exception:  # noqa: BLE001 - Pillow's readers fail with errors of any kind
        return ImageInputError("the image cannot be read: it is broken", param=_IMAGE)
    reason = f"the image has {width}×{height} pixels; at most {_MOST_PIXELS:,} are allowed"
    return ImageInputError(reason, param=_IMAGE)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


class EncodedImages(Examples):
    """Encoded images, with their pixels if they fit in memory.

    Args:
        images: encoded, and checked.
        encoder: decodes and scales them.
        targets: ``[n]``.
    """

    def __init__(self, images: Sequence[bytes], *, encoder: ImageEncoder, targets: Tensor) -> None:
        self.lengths = np.full(len(images), encoder.sequence_length, dtype=np.int64)
        self.targets = targets
        self._images = images
        self._encoder = encoder
        self._kept = self._keep_pixels()

    def _keep_pixels(self) -> Tensor | None:
        one = self._encoder.pixels(self._images[:1])
        if one.nbytes * len(self._images) > _KEPT_BYTES:
            return None
        starts = range(0, len(self._images), _CHUNK)
        return torch.cat([self._encoder.pixels(self._images[at : at + _CHUNK]) for at in starts])

    def batch(self, indices: Sequence[int] | NDArray[np.int64]) -> Batch:
        """Collate some samples."""
        chosen = torch.as_tensor(np.asarray(indices))
        if self._kept is None:
            pixels = self._encoder.pixels([self._images[index] for index in chosen.tolist()])
        else:
            pixels = self._kept[chosen]
        return Batch({"pixel_values": pixels}, self.targets[chosen])

    def digest(self) -> str:
        """Return a hash of the encoded images, the processor's settings and the targets."""
        return digest_of([self._encoder.settings, *self._images, self.targets.numpy()])
