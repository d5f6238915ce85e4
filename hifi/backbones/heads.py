"""The weight rows that belong to each head; the only file that knows about architectures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hifi.errors import InvalidArgumentError, TunerError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ProjectionName = Literal["query", "key", "value"]
PROJECTION_NAMES: tuple[ProjectionName, ...] = ("query", "key", "value")


@dataclass(frozen=True, order=True)
class HeadId:
    """One attention head.

    Attributes:
        layer: index of the layer, from 0 at the bottom.
        head: index of the head in its layer, or of the key-value group if keys are grouped.
    """

    layer: int
    head: int


@dataclass(frozen=True)
class Projection:
    """The place of the query, key or value rows of one layer.

    Attributes:
        name: ``query``, ``key`` or ``value``.
        module_name: dotted path of the module in the model; fused projections share a module.
        offset: first output row of this projection in the module.
        rows_per_head: output rows of one head, D' (G·D' for the query of a key-value group).
        transposed: True if the weight is stored as ``[D, rows]`` (GPT-2's Conv1D).
    """

    name: ProjectionName
    module_name: str
    offset: int
    rows_per_head: int
    transposed: bool

    def rows(self, head: int) -> slice:
        """Return the output rows of ``head`` in the module, as ``nn.Linear`` counts them."""
        start = self.offset + head * self.rows_per_head
        return slice(start, start + self.rows_per_head)


@dataclass(frozen=True)
class RelativePositions:
    """Positions that a layer projects with its own query and key rows, beside the hidden states.

    Attributes:
        attention: dotted path of the self-attention; it has ``num_attention_heads``.
        method: name of its method that takes the projected queries and keys of all samples,
            ``[B·H, S, D']``, projects the position embeddings ``[1, P, D]`` once for all of them,
            and returns what is added to the attention scores.
    """

    attention: str
    method: str


@dataclass(frozen=True)
class AttentionLayer:
    """One layer's projections.

    Attributes:
        index: the layer's position, from 0.
        name: dotted path of the whole layer, which takes and returns hidden states ``[B, S, D]``.
        projections: query, key and value, in this order.
        output_name: dotted path of W^O, whose input is the concatenated head outputs O_h.
        returns_tuple: True if the layer returns its hidden states in a tuple.
        positions: relative positions that query and key project too; None if there are none.
    """

    index: int
    name: str
    projections: tuple[Projection, ...]
    output_name: str
    returns_tuple: bool = False
    positions: RelativePositions | None = None

    @property
    def module_names(self) -> tuple[str, ...]:
        """The modules that hold the projections, each once."""
        return tuple(dict.fromkeys(projection.module_name for projection in self.projections))


@dataclass(frozen=True)
class Backbone:
    """The attention of a model, described without its weights.

    Attributes:
        architecture: the configuration's ``model_type``.
        num_heads: H, the heads that can be selected; key-value groups if keys are grouped.
        group_size: G, query heads per selectable head; 1 without grouped keys.
        head_dim: D'.
        hidden_size: D.
        layers: one entry per layer, bottom first.
        shared: dotted paths of modules outside the layers that every layer may read, such as
            relative positions.
    """

    architecture: str
    num_heads: int
    group_size: int
    head_dim: int
    hidden_size: int
    layers: tuple[AttentionLayer, ...]
    shared: tuple[str, ...] = ()

    @property
    def num_layers(self) -> int:
        """The number of layers, L."""
        return len(self.layers)

    @property
    def num_query_heads(self) -> int:
        """The number of query heads in a layer, H·G."""
        return self.num_heads * self.group_size

    def check_heads(self, heads: Iterable[HeadId]) -> None:
        """Raise if this backbone does not have these heads.

        Raises:
            InvalidArgumentError: a layer or head index outside the backbone.
        """
        for head in heads:
            if not 0 <= head.layer < self.num_layers or not 0 <= head.head < self.num_heads:
                raise InvalidArgumentError(
                    "heads",
                    value=head,
                    limit=f"layers 0..{self.num_layers - 1}, heads 0..{self.num_heads - 1}",
                )


@dataclass(frozen=True)
class _Layout:
    """Module names of one architecture family, relative to its base model or to a layer.

    Attributes:
        layers: the list of layers.
        query, key, value, output: the projections and W^O, in a layer.
        returns_tuple: as in :class:`AttentionLayer`.
        shared: as in :class:`Backbone`; those that a model lacks are left out.
        positions: the method of :class:`RelativePositions`.
    """

    layers: str
    query: str
    key: str
    value: str
    output: str
    returns_tuple: bool = False
    shared: tuple[str, ...] = ()
    positions: str | None = None

    @property
    def fused(self) -> bool:
        return self.query == self.key


def _separate(
    layers: str,
    attention: str,
    names: str,
    output: str,
    *,
    returns_tuple: bool = False,
    shared: str = "",
    positions: str | None = None,
) -> _Layout:
    query, key, value = (f"{attention}.{name}" for name in names.split())
    others = tuple(shared.split())
    return _Layout(layers, query, key, value, output, returns_tuple, others, positions)


_BERT = _separate("encoder.layer", "attention.self", "query key value", "attention.output.dense")
_VIT = _separate("layers", "attention", "q_proj k_proj v_proj", "attention.o_proj")
_LLAMA = _separate("layers", "self_attn", "q_proj k_proj v_proj", "self_attn.o_proj")
_DEBERTA = _separate(
    "encoder.layer",
    "attention.self",
    "query_proj key_proj value_proj",
    "attention.output.dense",
    returns_tuple=True,
    shared="encoder.rel_embeddings encoder.LayerNorm encoder.conv",
    positions="disentangled_attention_bias",
)
_LAYOUTS: dict[str, _Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": _separate(
        "transformer.layer", "attention", "q_lin k_lin v_lin", "attention.out_lin"
    ),
    "deberta-v2": _DEBERTA,
    "mpnet": _separate(
        "encoder.layer",
        "attention.attn",
        "q k v",
        "attention.attn.o",
        returns_tuple=True,
        shared="encoder.relative_attention_bias",
    ),
    "vit": _VIT,
    "deit": _VIT,
    "modernbert": _Layout("layers", "attn.Wqkv", "attn.Wqkv", "attn.Wqkv", "attn.Wo"),
    "gpt2": _Layout("h", "attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj"),
    "llama": _LLAMA,
    "qwen3": _LLAMA,
}
SUPPORTED_ARCHITECTURES: tuple[str, ...] = tuple(sorted(_LAYOUTS))
# The linear layer before the last one of a task head, and the function that follows it; None: the
# one that the configuration names.
_HIDDEN_LAYERS: dict[str, tuple[str, str | None]] = {
    "roberta": ("classifier.dense", "tanh"),
    "xlm-roberta": ("classifier.dense", "tanh"),
    "electra": ("classifier.dense", "gelu"),
    "distilbert": ("pre_classifier", "relu"),
    "modernbert": ("head.dense", None),
    "deberta-v2": ("pooler.dense", None),
    "mpnet": ("classifier.dense", "tanh"),
}
_ACTIVATION_FIELDS = {"modernbert": "classifier_activation", "deberta-v2": "pooler_hidden_act"}
_POOLER_LAYER = ("dense", "tanh")  # of BERT's pooler; no other classifier has one


def describe(model: PreTrainedModel) -> Backbone:
    """Locate every head of a model.

    Args:
        model: a transformers model, bare or with a task head, tuned or not.

    Returns:
        The description: names and numbers only, no weights.

    Raises:
        UnsupportedArchitectureError: the architecture, or a variant of it (cross attention), is
            not supported.
    """
    if not isinstance(model, PreTrainedModel):
        raise _unsupported(f"{type(model).__name__} is not a transformers model; unwrap it first")
    config = model.config
    architecture = str(config.model_type)
    layout = _LAYOUTS.get(architecture)
    if layout is None:
        raise _unsupported(f"architecture {architecture!r} is not supported")
    if getattr(config, "add_cross_attention", False):
        raise _unsupported(f"{architecture!r} with cross attention is not supported")
    if not _projects_positions(config):
        layout = replace(layout, positions=None)
    query_heads = int(config.num_attention_heads)
    num_heads = int(getattr(config, "num_key_value_heads", None) or query_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // query_heads)
    base = model.base_model
    prefix = _name_of(base, model=model)
    count = len(_module_list(base, layout.layers))
    return Backbone(
        architecture=architecture,
        num_heads=num_heads,
        group_size=query_heads // num_heads,
        head_dim=head_dim,
        hidden_size=int(config.hidden_size),
        layers=tuple(
            _describe_layer(
                model,
                index,
                f"{prefix}{layout.layers}.{index}.",
                layout,
                rows=(query_heads // num_heads * head_dim, head_dim, head_dim),
                num_heads=num_heads,
            )
            for index in range(count)
        ),
        shared=tuple(f"{prefix}{name}" for name in layout.shared if _find(base, name) is not None),
    )


def _describe_layer(
    model: nn.Module,
    index: int,
    prefix: str,
    layout: _Layout,
    *,
    rows: tuple[int, int, int],
    num_heads: int,
) -> AttentionLayer:
    transposed = isinstance(model.get_submodule(prefix + layout.output), Conv1D)
    projections = []
    offset = 0
    for name, rows_per_head in zip(PROJECTION_NAMES, rows, strict=True):
        module_name = prefix + str(getattr(layout, name))
        projections.append(Projection(name, module_name, offset, rows_per_head, transposed))
        if layout.fused:
            offset += num_heads * rows_per_head
    attention = projections[0].module_name.rpartition(".")[0]
    return AttentionLayer(
        index,
        prefix.removesuffix("."),
        tuple(projections),
        prefix + layout.output,
        layout.returns_tuple,
        RelativePositions(attention, layout.positions) if layout.positions else None,
    )


def _find(base: nn.Module, path: str) -> nn.Module | None:
    return dict(base.named_modules()).get(path)


def _projects_positions(config: PreTrainedConfig) -> bool:
    """Return whether query and key rows project relative positions; some DeBERTas do not."""
    return bool(
        getattr(config, "relative_attention", False) and getattr(config, "share_att_key", False)
    )


def _name_of(base: nn.Module, *, model: nn.Module) -> str:
    """Return the base model's dotted name in the model; empty for a bare model."""
    for name, module in model.named_modules():
        if module is base:
            return f"{name}." if name else ""
    raise _unsupported(f"{type(model).__name__} does not contain its base model")


def _module_list(base: nn.Module, path: str) -> nn.ModuleList:
    layers = _find(base, path)
    if not isinstance(layers, nn.ModuleList):
        raise _unsupported(f"{type(base).__name__}.{path} is not a list of layers")
    return layers


def _unsupported(reason: str) -> UnsupportedArchitectureError:
    supported = ", ".join(SUPPORTED_ARCHITECTURES)
    return UnsupportedArchitectureError(f"{reason}; supported architectures: {supported}")


def read_rows(model: nn.Module, projection: Projection, head: int) -> tuple[Tensor, Tensor | None]:
    """Copy the rows of one head out of a projection.

    Args:
        model: the model that ``projection`` describes.
        projection: query, key or value of one layer.
        head: the head (or key-value group).

    Returns:
        Weight ``[rows, D]`` as in ``nn.Linear``, however the architecture stores it, and bias
        ``[rows]`` or None; copies, in the model's dtype.
    """
    module = model.get_submodule(projection.module_name)
    rows = projection.rows(head)
    stored, bias = cast("tuple[Tensor, Tensor | None]", (module.weight, module.bias))
    weight = stored.detach()[:, rows].T if projection.transposed else stored.detach()[rows]
    return weight.clone(memory_format=torch.contiguous_format), (
        None if bias is None else bias.detach()[rows].clone()
    )


def write_rows(
    model: nn.Module, projection: Projection, head: int, *, weight: Tensor, bias: Tensor | None
) -> None:
    """Copy rows of one head into a projection, in place and invisible to autograd.

    Args:
        model: the model that ``projection`` describes.
        projection: query, key or value of one layer.
        head: the head (or key-value group).
        weight: ``[rows, D]`` as in ``nn.Linear``; cast to the model's dtype.
        bias: ``[rows]``, or None if the projection has no bias.

    Raises:
        TunerError: the projection is wrapped by a tuner, an adapter or a quantiser.
    """
    module = plain_projection(model, projection)
    rows = projection.rows(head)
    target = module.weight.data
    target = target[:, rows].T if projection.transposed else target[rows]
    target.copy_(weight)
    if bias is not None and module.bias is not None:
        module.bias.data[rows] = bias.to(module.bias.dtype)


def plain_projection(model: nn.Module, projection: Projection) -> nn.Linear | Conv1D:
    """Return the module of a projection; raise unless it is the one that transformers built.

    Raises:
        TunerError: the projection is wrapped by a tuner, an adapter or a quantiser.
    """
    module = cast("nn.Linear | Conv1D", model.get_submodule(projection.module_name))
    if type(module) not in (nn.Linear, Conv1D):
        raise TunerError(
            f"{projection.module_name} is a {type(module).__name__}, not a plain projection: "
            "detach the tuner or adapter that wraps it first"
        )
    return module


def rows_by_head(weight: Tensor, projection: Projection, *, num_heads: int) -> Tensor:
    """Return the rows of every head in a projection's weight, or in its gradient.

    Args:
        weight: as the architecture stores it.
        projection: query, key or value of one layer.
        num_heads: H.

    Returns:
        ``[H, rows, D]`` as in ``nn.Linear``; a view.
    """
    rows = weight.T if projection.transposed else weight
    start, size = projection.offset, projection.rows_per_head
    return rows[start : start + num_heads * size].view(num_heads, size, -1)


def output_blocks(model: nn.Module, layer: AttentionLayer, *, num_query_heads: int) -> Tensor:
    """Return the part of W^O that reads each query head.

    Args:
        model: the model that ``layer`` describes.
        layer: one of its layers.
        num_query_heads: H·G.

    Returns:
        ``[H·G, D', D]``, a view without gradient: ``O_h @ blocks[h]``, summed over the heads, is
        the output projection without its bias.
    """
    module = model.get_submodule(layer.output_name)
    weight = cast("Tensor", module.weight).detach()
    columns = weight if isinstance(module, Conv1D) else weight.T
    return columns.view(num_query_heads, -1, columns.shape[1])


def backbone_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype of a model's backbone; that of a task head may differ."""
    return cast("PreTrainedModel", model.base_model).dtype


def task_head_names(model: PreTrainedModel, *, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of the task head's parameters.

    The task head is every parameter outside the base model, except the output embedding of a
    language model, plus ``extra`` (a pooler that the checkpoint lacked).

    Args:
        model: a transformers model; a bare one has no task head.
        extra: dotted names of further modules.

    Returns:
        Parameter names in the model's own order.

    Raises:
        InvalidArgumentError: ``extra`` names a module that the model does not have, or a module of
            the backbone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    optional = set(optional_parameter_names(model))
    frozen = {id(parameter) for parameter in model.base_model.parameters()}
    backbone = {id(p) for name, p in model.named_parameters() if name not in optional} & frozen
    for name in extra:
        if name not in modules or any(id(p) in backbone for p in modules[name].parameters()):
            limit = "a module of the model that is not part of its backbone"
            raise InvalidArgumentError("task_head", value=name, limit=limit)
    frozen.update(id(model.get_parameter(name)) for name in output_parameter_names(model))
    wanted = {id(parameter) for name in extra for parameter in modules[name].parameters()}
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in wanted or id(parameter) not in frozen
    )


@dataclass(frozen=True)
class HiddenLayer:
    """The linear layer of a task head that stands before the last one.

    Attributes:
        name: dotted path of the ``nn.Linear`` in the model.
        activation: the name of the function that its output goes through.
    """

    name: str
    activation: str


@dataclass(frozen=True)
class TaskHeadLayers:
    """The linear layers of a task head.

    Attributes:
        last: dotted path of the ``nn.Linear`` whose outputs are the logits.
        hidden: the one before it; None if there is none, or none that is known.
    """

    last: str
    hidden: HiddenLayer | None = None


def task_head_layers(model: PreTrainedModel, *, extra: Iterable[str] = ()) -> TaskHeadLayers | None:
    """Locate the linear layers of a task head.

    Args:
        model: a transformers model.
        extra: further modules of the task head, as for :func:`task_head_names`.

    Returns:
        None if the task head does not end in an ``nn.Linear`` with one output per label.
    """
    poolers = tuple(extra)
    own = set(task_head_names(model))
    mine = set(task_head_names(model, extra=poolers))
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" in mine
    ]
    ends = [name for name in linear if f"{name}.weight" in own]
    if not ends:
        return None
    last = ends[-1]  # XLM-R for choices lists its base model, and so a pooler, behind it
    if cast("nn.Linear", model.get_submodule(last)).out_features != model.config.num_labels:
        return None
    name, activation = _HIDDEN_LAYERS.get(str(model.config.model_type), ("", None))
    if poolers:
        name, activation = f"{poolers[0]}.{_POOLER_LAYER[0]}", _POOLER_LAYER[1]
    if name == last or name not in linear:
        return TaskHeadLayers(last)
    follows = activation or getattr(model.config, _ACTIVATION_FIELDS[model.config.model_type])
    return TaskHeadLayers(last, HiddenLayer(name, str(follows)))


@dataclass(frozen=True)
class FirstTokenLayer:
    """The last layer of a model whose task head reads only the first token.

    Attributes:
        attention: dotted path of the self-attention; it has ``query, key, value, dropout``. None if
            its scores are more than products of queries and keys.
        output: dotted path of the module that takes ``(head outputs, residual)``, both
            ``[B, S, D]``; after it the model works token by token.
    """

    attention: str | None
    output: str


def first_token_layer(model: PreTrainedModel) -> FirstTokenLayer | None:
    """Describe the last layer if the task head reads only its first token.

    Returns:
        None for pooling over tokens, another residual layout, or a decoder.
    """
    layout, config = _LAYOUTS.get(str(model.config.model_type)), model.config
    if layout not in (_BERT, _DEBERTA) or getattr(config, "is_decoder", False):
        return None
    kind = type(model)  # a subclass may pool differently
    is_choice = kind.__name__.endswith("ForMultipleChoice")
    if not is_choice and not kind.__name__.endswith("ForSequenceClassification"):
        return None
    if is_choice and getattr(config, "summary_type", "first") != "first":  # ELECTRA
        return None
    if not kind.__module__.startswith("transformers.models."):
        return None
    last = describe(model).layers[-1]
    if last.index == 0 and getattr(config, "conv_kernel_size", None):
        return None  # DeBERTa convolves the tokens after its first layer
    return FirstTokenLayer(
        attention=last.module_names[0].removesuffix(".query") if layout is _BERT else None,
        output=last.output_name.removesuffix(".dense"),
    )


def optional_parameter_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of base model parameters that some classes of the architecture lack.

    These are the pooler (sequence classifiers have one, question answering has none) and the mask
    token of masked image modelling, so they cannot identify a checkpoint.

    Args:
        model: a transformers model, bare or with a task head.

    Returns:
        Dotted names in ``model``, in its own order.
    """
    return _names_in_base(model, lambda name: name == "embeddings.mask_token" or _in_pooler(name))


def pooler_parameter_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of the pooler's parameters; empty if the model has no pooler."""
    return _names_in_base(model, _in_pooler)


def output_parameter_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a language model's output embedding, unless the base model shares it."""
    output = model.get_output_embeddings()
    mine = set() if output is None else {id(parameter) for parameter in output.parameters()}
    mine -= {id(parameter) for parameter in model.base_model.parameters()}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in mine)


def _in_pooler(name: str) -> bool:
    return name.startswith("pooler.")


def _names_in_base(model: PreTrainedModel, is_wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the names in ``model`` of the base model's parameters whose own name is wanted."""
    prefix = _name_of(model.base_model, model=model)
    names = (name for name, _ in model.base_model.named_parameters())
    return tuple(prefix + name for name in names if is_wanted(name))
