"""What the checkpoint of a loaded model brought, and under which name it was loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from hifi.backbones.heads import (
    optional_parameter_names,
    output_parameter_names,
    pooler_parameter_names,
    task_head_names,
)
from hifi.backbones.models import INITIALISED, WEIGHTS, find_folder, identify_folder, some_of
from hifi.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


def loaded_name(config: PreTrainedConfig) -> tuple[str, str | None]:
    """Return name and commit of a loaded model; transformers knows no commit of a hub id."""
    loaded_from = str(config.name_or_path or config.model_type)
    folder = find_folder(Path(loaded_from))
    if folder is None:
        return loaded_from, None
    source = identify_folder(folder)
    return source.name, source.revision


def new_parameter_names(model: PreTrainedModel, *, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the task head of a model: every parameter that its checkpoint did not bring.

    These are the parameters of ``task_head_names``, and those of a pooler or an output embedding
    that are not known to come from the checkpoint. They are known to if

    - the checkpoint's safetensors files, in a folder or in the hub's cache, have exactly these
      values in the model's dtype; or, if such files are not found,
    - transformers marked the parameters as read. It marks nothing in a model that was built from a
      configuration, or copied.

    A pooler of unknown origin is thus part of the task head: it is trained, and a head delta
    stores it. A mask token that the checkpoint lacked is not: transformers sets it to zeros.

    Args:
        model: as it was loaded.
        extra: dotted names of further modules, as in ``task_head_names``.

    Returns:
        Parameter names in the model's own order.

    Raises:
        InvalidArgumentError: as in ``task_head_names``.
    """
    wanted = set(task_head_names(model, extra=extra))
    for names in (pooler_parameter_names(model), output_parameter_names(model)):
        if not _is_known(model, names):
            wanted.update(names)
    return tuple(name for name, _ in model.named_parameters() if name in wanted)


def check_loaded(model: PreTrainedModel) -> None:
    """Raise if the checkpoint lacked weights of the backbone, so that they are random.

    A model that was built from a configuration, or copied, passes: nothing is known of it.

    Raises:
        ModelError: weights that no task trains from scratch were not read from the checkpoint.
    """
    parameters = dict(model.named_parameters())
    unread = {name for name, each in parameters.items() if not _is_marked(each)}
    missing = unread.difference(
        task_head_names(model), optional_parameter_names(model), output_parameter_names(model)
    )
    if missing and len(unread) < len(parameters):
        raise ModelError(
            f"{loaded_name(model.config)[0]} lacked {len(missing)} weights of the backbone of this "
            f"{type(model).__name__}: {some_of(missing)}; they are random, and loading it again "
            "would not restore them: load a checkpoint that has them, or write this model with "
            "save_pretrained and load that"
        )


def _is_marked(parameter: Tensor) -> bool:
    """Return whether transformers marked a parameter as read from a checkpoint."""
    return bool(getattr(parameter, INITIALISED, False))


def _is_known(model: PreTrainedModel, names: Iterable[str]) -> bool:
    """Return whether all these parameters are known to come from the model's checkpoint."""
    parameters = {name: model.get_parameter(name) for name in names}
    try:
        files = _checkpoint_files(model.config)
        if not files:
            return all(map(_is_marked, parameters.values()))
        return all(
            any(
                parameter.detach().cpu().equal(stored)
                for stored in _stored(
                    files, name.removeprefix(f"{model.base_model_prefix}."), dtype=parameter.dtype
                )
            )
            for name, parameter in parameters.items()
        )
    except (OSError, ValueError, SafetensorError):  # the files cannot be read now
        return False


def _stored(files: Mapping[str, Path], name: str, *, dtype: torch.dtype) -> Iterator[Tensor]:
    """Read the tensors of this name, with any prefix, from the files, in a dtype."""
    for key, path in files.items():
        if key == name or key.endswith(f".{name}"):
            with safe_open(path, framework="pt") as file:
                yield file.get_tensor(key).to(dtype)


def _checkpoint_files(config: PreTrainedConfig) -> dict[str, Path]:
    """Return the file of each tensor of a model's checkpoint; empty if no file is found."""
    if not config.name_or_path:
        return {}
    for name in WEIGHTS:
        path = _find_file(str(config.name_or_path), name)
        if path is None:
            continue
        if path.suffix == ".json":
            index = json.loads(path.read_text("utf-8"))["weight_map"]
            return {key: path.with_name(shard) for key, shard in index.items()}
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    return {}


def _find_file(loaded_from: str, name: str) -> Path | None:
    """Find a file of a folder, or of a hub id's default revision in the hub's cache."""
    folder = find_folder(Path(loaded_from))
    if folder is not None:
        return folder / name if (folder / name).is_file() else None
    with suppress(HFValidationError):
        cached = huggingface_hub.try_to_load_from_cache(loaded_from, name)
        if isinstance(cached, str):
            return Path(cached)
    return None
