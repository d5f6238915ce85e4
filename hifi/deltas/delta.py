"""The head delta: the tuned rows and task head of one task, and how to merge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from hifi.backbones.checkpoint import loaded_name
from hifi.backbones.fingerprint import rows_fingerprint
from hifi.backbones.heads import backbone_dtype, describe
from hifi.deltas import lora
from hifi.deltas.encoding import add_differences, differences
from hifi.deltas.file import read_delta_file, write_delta_file
from hifi.deltas.identity import (
    check_architecture,
    check_fingerprint,
    describe_backbone,
    is_backbone,
)
from hifi.deltas.metadata import ENCODINGS, DeltaMetadata, Encoding
from hifi.deltas.placement import (
    check_range,
    read_matching_rows,
    read_matching_task_head,
    write_matching_rows,
    write_matching_task_head,
)
from hifi.deltas.row_names import check_shapes, heads_of_rows, row_key, shapes_of
from hifi.errors import BackboneMismatchError, InvalidArgumentError
from hifi.selection.head_selection import HeadSelection

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import HeadId

__all__ = ["DeltaMetadata", "HeadDelta", "row_key"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadDelta:
    """The result of fine-tuning one backbone: the tuned rows and the task head.

    Attributes:
        rows: W', the tuned rows, by ``row_key`` name ``layers.{l}.heads.{h}.{projection}.{part}``:
            weight ``[rows, D]`` as in ``nn.Linear``, bias ``[rows]`` if the backbone has one.
            If ``values`` is ``differences`` the weights are W'−W; biases are never differences.
        task_head: parameter name in the model to tensor; empty if there is no task head.
        metadata: describes the delta; its ``rows_fingerprint`` is that of ``base``.
        base: W, the rows that W' replaces, under the same names; None if they are not known.
            Only saving in bfloat16 or int8 needs them.

    Tensors are copied to the CPU and keep their dtype, so further training does not change them.

    Raises:
        InvalidArgumentError: row names or shapes do not fit one backbone.
    """

    rows: Mapping[str, Tensor]
    task_head: Mapping[str, Tensor]
    metadata: DeltaMetadata
    base: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the rows; copy every tensor to the CPU."""
        check_shapes(shapes_of(self.rows))
        if self.base is not None and shapes_of(self.base) != shapes_of(self.rows):
            limit = "the names and shapes of rows"
            raise InvalidArgumentError("base", value=sorted(self.base), limit=limit)
        for name in ("rows", "task_head", "base"):
            tensors = getattr(self, name)
            if tensors is not None:
                held = {key: t.detach().to("cpu", copy=True) for key, t in tensors.items()}
                object.__setattr__(self, name, held)

    @property
    def values(self) -> Literal["rows", "differences"]:
        """``rows`` if the delta holds W', else ``differences``: W'−W, as bfloat16 and int8 do."""
        return "rows" if self.metadata.encoding == "float32" else "differences"

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The tuned heads, in order."""
        return heads_of_rows(self.rows)

    @property
    def selection(self) -> HeadSelection:
        """The selection that the delta records; only its heads if the record is invalid."""
        try:
            return HeadSelection.from_dict(self.metadata.selection)
        except InvalidArgumentError:
            layers = 1 + max((head.layer for head in self.heads), default=-1)
            return HeadSelection.from_heads(self.heads, num_layers=layers)

    @classmethod
    def load(cls, path: str | Path) -> HeadDelta:
        """Read a delta file; nothing in it is executed.

        Args:
            path: the file, trusted or not.

        Raises:
            DeltaFileError: the file does not exist, or is malformed, truncated or of another kind.
        """
        rows, task_head, metadata = read_delta_file(path)
        return cls(rows=rows, task_head=task_head, metadata=metadata)

    def save(self, path: str | Path, *, encoding: Encoding = "float32") -> None:
        """Write a delta file, atomically; equal deltas give equal bytes.

        Args:
            path: the file; an existing file is replaced.
            encoding: ``float32`` stores the rows themselves and is exact; ``bfloat16`` and ``int8``
                store differences to the backbone, in half and a quarter of the size.

        Raises:
            InvalidArgumentError: an unknown encoding; an encoding that needs the backbone's rows
                when they are not known (see ``with_base``); no heads; numbers that are not finite;
                float64 values that float32 would round.
            StorageError: the file cannot be written, as in ``write_atomically``.
        """
        if encoding not in ENCODINGS:
            raise InvalidArgumentError("encoding", value=encoding, limit=f"one of {ENCODINGS}")
        write_delta_file(
            path,
            rows=self._values_for(encoding),
            task_head=self.task_head,
            metadata=replace(self.metadata, encoding=encoding),
        )

    def check_backbone(self, model: PreTrainedModel) -> None:
        """Raise if a freshly loaded model is not exactly the delta's backbone.

        ``merge``, ``with_base`` and ``to_lora`` check only the rows that the delta replaces; this
        checks every weight of the backbone and the configuration that shapes its forward pass.

        Args:
            model: nothing merged into it; in the dtype in which it is stored, in a wider one, or in
                that of the delta's tuning.

        Raises:
            BackboneMismatchError: another backbone, another revision or a narrower dtype.
            UnsupportedArchitectureError: the model's architecture is not supported.
        """
        self._check_architecture(model)
        check_fingerprint(self.metadata, model)

    def with_base(self, model: PreTrainedModel) -> HeadDelta:
        """Return the delta with the backbone's rows added, so that every encoding can be saved.

        Only the model's rows that the delta replaces are checked; see ``check_backbone`` for all.

        Args:
            model: the delta's backbone with any task head, without the delta merged; in the dtype
                in which it is stored, in that of the tuning (``metadata.compute_dtype``), or in a
                wider one.

        Returns:
            The same delta with ``base``; differences are converted to rows.

        Raises:
            BackboneMismatchError, TunerError, UnsupportedArchitectureError: as in ``merge``; a
                dtype narrower than the stored one and the tuning's, because W'−W would contain
                rounding errors.
        """
        present = self._read_base(model)
        self._check_width(model, present)
        metadata = replace(self.metadata, encoding="float32")
        return replace(self, rows=self._rows_in_place_of(present), base=present, metadata=metadata)

    def rows_on(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Return W', the rows that ``merge`` writes into a model.

        Args:
            model: the delta's backbone with any task head, without the delta merged.

        Returns:
            The rows by name, on the CPU, not yet rounded to the model's dtype.

        Raises:
            BackboneMismatchError, TunerError, UnsupportedArchitectureError: as in ``merge``.
        """
        return self._rows_in_place_of(self._read_base(model))

    def merge(self, model: PreTrainedModel, *, task_head: bool = True) -> HeadDelta:
        """Copy the tuned rows and the task head into a model, in place.

        At equal dtype the merged model equals the tuned one bit for bit. All checks come before the
        first write, so a refused merge changes nothing. The checks cover the architecture, the rows
        that are replaced (to bfloat16's precision), and the names and shapes of the task head. They
        do not notice a backbone that differs elsewhere; see ``check_backbone``.

        Args:
            model: the delta's backbone with a matching task head; in any floating dtype, but in
                float16 only if it is stored in float16.
            task_head: False leaves the model's task head unchanged.

        Returns:
            The replaced rows and task head as a head delta: merging it back restores the model bit
            for bit.

        Raises:
            BackboneMismatchError: another architecture; different heads, shapes or biases; the
                model's rows do not match ``rows_fingerprint`` (another backbone or revision, or the
                delta is already merged); values beyond the range of the model's dtype.
            TaskHeadMismatchError: the model's task head has other names or shapes; the delta's task
                head contains a parameter of the backbone other than a pooler's.
            TunerError: a tuner, an adapter or a quantiser wraps the model's projections.
            UnsupportedArchitectureError: the model's architecture is not supported.
        """
        present = self._read_base(model)
        head = self.task_head if task_head else {}
        displaced_head = read_matching_task_head(model, head)
        rows = self._rows_in_place_of(present)
        check_range({**rows, **head}, dtype=backbone_dtype(model))
        merged = {name: rows[name].to(tensor.dtype) for name, tensor in present.items()}
        displaced = HeadDelta(
            rows=present,
            task_head=displaced_head,
            metadata=replace(
                self.metadata,
                rows_fingerprint=rows_fingerprint(merged),
                compute_dtype=str(next(iter(present.values())).dtype).removeprefix("torch."),
                task=None,
                labels=None,
                training={},
                encoding="float32",
            ),
            base=merged,
        )
        write_matching_rows(model, merged)
        write_matching_task_head(model, head)
        return displaced

    def to_lora(self, directory: str | Path, model: PreTrainedModel) -> None:
        """Write the delta as a LoRA adapter that stock PEFT loads, atomically.

        Only the backbone's rows that the delta replaces are checked; see ``check_backbone`` for
        all.

        Args:
            directory: a folder that does not exist yet, or is empty.
            model: the delta's backbone with a matching task head, without the delta merged; in a
                dtype as in ``with_base``.

        Raises:
            BackboneMismatchError, TunerError, UnsupportedArchitectureError: as in ``with_base``.
            TaskHeadMismatchError: as in ``merge``; the task head has only a part of a module.
            StorageError: the folder exists and is not empty, or cannot be written.
        """
        known = self.with_base(model)
        lora.export_lora(
            directory,
            model=model,
            rows=known.rows,
            base=known.base or {},
            task_head=self.task_head,
            metadata=self.metadata,
        )

    def _values_for(self, encoding: Encoding) -> Mapping[str, Tensor]:
        """Return rows or differences, depending on what ``encoding`` stores."""
        if encoding == self.metadata.encoding:
            return self.rows
        if self.values == "differences" or self.base is None:
            raise InvalidArgumentError(
                "encoding",
                value=encoding,
                limit=f"only {self.metadata.encoding} until the delta knows the backbone's rows: "
                "load the backbone and save delta.with_base(model)",
            )
        return differences(self.rows, base=self.base, compute_dtype=self.metadata.compute_dtype)

    def _read_base(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Copy W out of a model; raise if it is not the delta's."""
        self._check_architecture(model)
        present = read_matching_rows(model, self.rows)
        self._check_rows_fingerprint(present)
        return present

    def _rows_in_place_of(self, present: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return W' for a model whose rows are ``present``."""
        if self.values == "rows":
            return self.rows
        return add_differences(self.rows, base=present, compute_dtype=self.metadata.compute_dtype)

    def _check_architecture(self, model: PreTrainedModel) -> None:
        check_architecture(
            self.metadata,
            name=loaded_name(model.config)[0],
            architecture=describe(model).architecture,
        )

    def _check_rows_fingerprint(self, present: Mapping[str, Tensor]) -> None:
        wanted, found = self.metadata.rows_fingerprint, rows_fingerprint(present)
        if found == wanted:
            return
        merged = self.values == "rows" and found == rows_fingerprint(self.rows)
        hint = (
            "the delta is already merged into this model"
            if merged
            else "load that backbone in its stored dtype, in float32 or in bfloat16; if a delta is "
            "merged into it, undo that first by merging back what it displaced"
        )
        raise BackboneMismatchError(
            f"the head delta replaces rows of {describe_backbone(self.metadata)} whose fingerprint "
            f"is {wanted}; the model's rows have {found}: {hint}"
        )

    def _check_width(self, model: PreTrainedModel, present: Mapping[str, Tensor]) -> None:
        """Raise if W was rounded to a dtype narrower than the tuning's: W'−W would contain that."""
        tuned_at: torch.dtype = getattr(torch, self.metadata.compute_dtype)
        for name, tensor in present.items():
            if torch.promote_types(tensor.dtype, tuned_at) == tensor.dtype:
                continue
            if is_backbone(self.metadata, model):
                return  # it was stored in the narrow dtype
            found = str(tensor.dtype).removeprefix("torch.")
            wanted = self.metadata.compute_dtype
            raise BackboneMismatchError(
                f"the rows were tuned on {describe_backbone(self.metadata)} in {wanted}, but the "
                f"model is {found} ({name}), which is too narrow for exact differences: load the "
                f"backbone with dtype=torch.{wanted}"
            )
