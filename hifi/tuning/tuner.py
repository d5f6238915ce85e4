"""Tune only the selected heads' rows, inside any training loop (Alg. 3, lines 2-4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from hifi.backbones.checkpoint import check_loaded, loaded_name, new_parameter_names
from hifi.backbones.fingerprint import backbone_fingerprint, rows_fingerprint
from hifi.backbones.heads import (
    AttentionLayer,
    HeadId,
    Projection,
    backbone_dtype,
    describe,
    plain_projection,
    read_rows,
)
from hifi.deltas.delta import HeadDelta
from hifi.deltas.metadata import DeltaMetadata
from hifi.deltas.placement import write_matching_rows
from hifi.deltas.row_names import row_key
from hifi.errors import InvalidArgumentError, TunerError
from hifi.tuning.row_sliced import TunedProjection, refuse_dtype_change
from hifi.tuning.task_record import TaskFacts, complete_task

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel
    from transformers.pytorch_utils import Conv1D

    from hifi.selection.head_selection import HeadSelection

_GUARD = "head_tuner_guard"
_DTYPES = (torch.float32, torch.bfloat16)


class _Guard(nn.Module):
    """First child of a tuned model: keeps what detaching needs and refuses dtype changes.

    As the first child it raises before any parameter has changed.

    Attributes:
        dtype: of the backbone.
        task_head: names of the task head's parameters.
        projections: dotted paths of the tuned projections.
        requires_grad: the original ``requires_grad`` of every parameter.
        hooks: on the task head.
    """

    def __init__(self, model: PreTrainedModel, *, extra: tuple[str, ...]) -> None:
        super().__init__()
        self.dtype = backbone_dtype(model)
        self.task_head = new_parameter_names(model, extra=extra)
        self.projections: list[str] = []
        self.requires_grad = {name: p.requires_grad for name, p in model.named_parameters()}
        self.hooks: list[RemovableHandle] = []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's signature
        refuse_dtype_change(fn, dtypes=(self.dtype, torch.float32))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Turn a tuned model, or a copy of one, back into a plain one with the tuned rows in place.

    The task head is cast back to the backbone's dtype; ``requires_grad`` of every parameter is
    restored.

    Returns:
        The same model.

    Raises:
        TunerError: the model has no tuner.
    """
    guard = getattr(model, _GUARD, None)
    if not isinstance(guard, _Guard):
        raise TunerError("the model has no tuner to detach")
    for name in guard.projections:
        tuned = cast("TunedProjection", model.get_submodule(name))
        model.set_submodule(name, tuned.plain())
    for hook in guard.hooks:
        hook.remove()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = guard.requires_grad.get(name, parameter.requires_grad)
        if name in guard.task_head:
            parameter.data = parameter.data.to(guard.dtype)
    delattr(model, _GUARD)
    return model


def _cast_input(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Cast floating inputs of a float32 task head module to its dtype (a forward pre-hook)."""
    dtype = next(module.parameters(recurse=False)).dtype
    return tuple(
        argument.to(dtype)
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument
        for argument in arguments
    )


class HeadTuner:
    """Make a model train only its selected heads and its task head.

    The model is changed in place and works in any training loop, including
    ``transformers.Trainer``. All other parameters stay bit for bit the same.

    The task head is everything that the model's checkpoint did not bring: the parameters outside
    the base model, and a pooler that is not known to come from the checkpoint (see
    ``new_parameter_names``).

    Args:
        model: a transformers model in float32 or bfloat16; its heads' rows and its task head are
            trained in float32 either way.
        selection: the heads to tune.
        task_head: dotted names of further modules to train and to store: a language model's output
            embedding, or the checkpoint's own pooler.
        fingerprint: of the backbone as stored, if the caller knows it; by default it is computed
            from the model in memory.

    Raises:
        TunerError: the model already has a tuner, or wrapped or quantised projections.
        InvalidArgumentError: the selection is empty, or has heads that the model lacks.
        ModelError: the checkpoint lacked weights of the backbone.
        UnsupportedArchitectureError: the architecture is not supported.

    Example:
        >>> tuner = HeadTuner(model, select_heads(model, batches))
        >>> optimizer = torch.optim.AdamW(tuner.parameters(), lr=3e-4)
        >>> ...  # train
        >>> tuner.delta().save("task.safetensors")
    """

    def __init__(
        self,
        model: PreTrainedModel,
        selection: HeadSelection,
        *,
        task_head: Iterable[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        backbone = describe(model)
        _check_model(model)
        if not selection.heads:
            raise InvalidArgumentError("selection", value=(), limit="at least one head")
        if selection.num_layers != backbone.num_layers:
            raise InvalidArgumentError(
                "selection",
                value=f"{selection.num_layers} layers",
                limit=f"{backbone.num_layers} layers, as this model has",
            )
        backbone.check_heads(selection.heads)
        self.model = model
        self.selection = selection
        self._attached = True
        self._layers = backbone.layers
        for _, projection in self._places():
            plain_projection(model, projection)  # raise before anything is changed
        check_loaded(model)
        guard = _Guard(model, extra=tuple(task_head or ()))
        self._guard = guard
        self.fingerprint = fingerprint or backbone_fingerprint(model)
        self.base_rows = self.rows()
        self._source = loaded_name(model.config)
        model.requires_grad_(requires_grad=False)
        self._prepare_task_head()
        for layer in backbone.layers:
            if chosen := selection.selected_in(layer.index):
                self._wrap(layer, chosen)
        children = dict(model.named_children())
        for name in children:
            delattr(model, name)
        for name, child in {_GUARD: guard, **children}.items():
            model.add_module(name, child)

    def _places(self) -> Iterator[tuple[HeadId, Projection]]:
        for head in self.selection.heads:
            for projection in self._layers[head.layer].projections:
                yield head, projection

    def _prepare_task_head(self) -> None:
        guard = self._guard
        parameters = dict(self.model.named_parameters())
        for name in guard.task_head:
            parameters[name].data = parameters[name].data.float()
            parameters[name].requires_grad = True
        guard.hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(_cast_input)
            for name in dict.fromkeys(name.rpartition(".")[0] for name in guard.task_head)
            if guard.dtype != torch.float32
        ]

    def _wrap(self, layer: AttentionLayer, heads: Sequence[int]) -> None:
        for module_name in layer.module_names:
            slices = [
                projection.rows(head)
                for projection in layer.projections
                if projection.module_name == module_name
                for head in heads
            ]
            rows = torch.cat([torch.arange(each.start, each.stop) for each in slices])
            plain = cast("nn.Linear | Conv1D", self.model.get_submodule(module_name))
            tuned = TunedProjection(plain, rows=rows)
            tuned.train(plain.training)
            self.model.set_submodule(module_name, tuned)
            self._guard.projections.append(module_name)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the tuned rows and the task head, with their names in the model.

        Raises:
            TunerError: after :meth:`detach`.
        """
        self._check_attached()
        trained = set(self._guard.task_head)
        for module_name in self._guard.projections:
            trained |= {f"{module_name}.tuned_weight", f"{module_name}.tuned_bias"}
        for name, parameter in self.model.named_parameters():
            if name in trained:
                yield name, parameter

    def parameters(self) -> list[nn.Parameter]:
        """Return the trained parameters: tuned rows and task head, nothing else.

        Raises:
            TunerError: after :meth:`detach`.
        """
        return [parameter for _, parameter in self.named_parameters()]

    def rows(self) -> dict[str, Tensor]:
        """Return a copy of the selected heads' current rows.

        Returns:
            ``layers.{l}.heads.{h}.{query|key|value}.{weight|bias}`` to tensor, weight ``[rows, D]``
            as in ``nn.Linear``; float32 while the tuner is attached.
        """
        copies: dict[str, Tensor] = {}
        for head, projection in self._places():
            weight, bias = _current_rows(self.model, projection, head.head)
            copies[row_key(head, projection.name, "weight")] = weight
            if bias is not None:
                copies[row_key(head, projection.name, "bias")] = bias
        return copies

    def task_head_state(self) -> dict[str, Tensor]:
        """Return a copy of the current task head: parameter name to tensor."""
        parameters = dict(self.model.named_parameters())
        return {name: parameters[name].detach().clone() for name in self._guard.task_head}

    def delta(
        self,
        *,
        model: str | None = None,
        revision: str | None = None,
        task: Mapping[str, Any] | None = None,
        labels: Sequence[str | int] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> HeadDelta:
        """Return a head delta with a copy of the current tuned rows and task head.

        Args:
            model: the backbone's name; by default the name under which it was loaded: the packaged
                model, a hub id, or a folder's name.
            revision: the hub commit of the backbone; by default that of the snapshot from which it
                was loaded, if it was one.
            task: what a prediction needs, as plain JSON. Of a model with a task head, the number of
                labels and the problem type are added from its configuration.
            labels: the classes in the order of the logits; by default the configuration's, unless
                it only numbers them or the task has no classes.
            training: the hyperparameters, as plain JSON.

        Raises:
            InvalidArgumentError: ``task`` or ``labels`` contradict the model's configuration.
            TunerError: after :meth:`detach`.
        """
        self._check_attached()
        config = self.model.config
        if model is None:
            model, revision = self._source[0], revision or self._source[1]
        known = TaskFacts(task, labels)
        if self._guard.task_head:
            known = complete_task(task, labels, config=config)
        metadata = DeltaMetadata(
            model=model,
            revision=revision,
            fingerprint=self.fingerprint,
            rows_fingerprint=rows_fingerprint(self.base_rows),
            architecture=str(config.model_type),
            compute_dtype=str(self._guard.dtype).removeprefix("torch."),
            task=known.task,
            labels=known.labels,
            selection=replace(self.selection, fingerprint=None).to_dict(),  # has its own field
            training=training or {},
        )
        return HeadDelta(
            rows=self.rows(),
            task_head=self.task_head_state(),
            metadata=metadata,
            base=self.base_rows,
        )

    def detach(self) -> PreTrainedModel:
        """Turn the model back into a plain one, as the function :func:`detach` does; return it.

        Raises:
            TunerError: the tuner is already detached.
        """
        self._check_attached()
        detach(self.model)
        self._attached = False
        return self.model

    def undo(self) -> PreTrainedModel:
        """Detach and restore the backbone's own rows, bit for bit; return the model.

        The task head keeps its trained parameters.
        """
        if self._attached:
            self.detach()
        write_matching_rows(self.model, self.base_rows)
        return self.model

    def _check_attached(self) -> None:
        if not self._attached:
            raise TunerError("this tuner is detached: create a new one to continue tuning")


def _check_model(model: PreTrainedModel) -> None:
    if hasattr(model, _GUARD):
        raise TunerError("the model already has a tuner: detach it first")
    dtype = backbone_dtype(model)
    if dtype not in _DTYPES:
        allowed = " or ".join(f"dtype={each}" for each in _DTYPES)
        raise TunerError(
            f"the model is {dtype}, in which rows cannot be tuned: load it with {allowed}, "
            "whatever dtype it is stored in"
        )


def _current_rows(
    model: PreTrainedModel, projection: Projection, head: int
) -> tuple[Tensor, Tensor | None]:
    module = model.get_submodule(projection.module_name)
    if isinstance(module, TunedProjection):
        return module.tuned_slice(projection.rows(head))
    return read_rows(model, projection, head)
