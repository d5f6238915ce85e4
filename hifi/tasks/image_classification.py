"""Classification of images, any number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import transformers

from hifi.backbones.models import load_image_processor
from hifi.tasks.classification import ClassTask
from hifi.tasks.image import ImageEncoder

if TYPE_CHECKING:
    from hifi.backbones.models import AutoClass, ModelSource
    from hifi.tasks.base import Encoder, InputKind


@dataclass(frozen=True, kw_only=True)
class ImageClassification(ClassTask):
    """Classification of images; ``inputs`` is one image column."""

    type: ClassVar[str] = "image-classification"
    input_kind: ClassVar[InputKind] = "image"
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForImageClassification

    def load_encoder(
        self,
        source: ModelSource,
        config: transformers.PreTrainedConfig,
        *,
        max_length: int,  # noqa: ARG002 - the model fixes the length of an image
    ) -> Encoder:
        """Load the model's image processor."""
        (column,) = self.inputs
        return ImageEncoder(load_image_processor(source), config=config, column=column)
