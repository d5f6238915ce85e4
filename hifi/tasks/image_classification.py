"""Classification of images, any number of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import transformers

from hifi.data.task_types import IMAGE_CLASSIFICATION, TaskType
from hifi.tasks.classification import ClassTask
from hifi.tasks.image import ImageTask

if TYPE_CHECKING:
    from hifi.backbones.models import AutoClass


@dataclass(frozen=True, kw_only=True)
class ImageClassification(ImageTask, ClassTask):
    """Classification of images; ``inputs`` is one image column."""

    declaration: ClassVar[TaskType] = IMAGE_CLASSIFICATION
    auto_class: ClassVar[AutoClass] = transformers.AutoModelForImageClassification
