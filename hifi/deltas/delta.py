"""The head delta: tuned rows and task head of one task, and how they go into a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from hifi.backbones.fingerprint import backbone_fingerprint, rows_fingerprint
from hifi.deltas import lora
from hifi.deltas.encoding import add_differences, differences
from hifi.deltas.file import DeltaContent, read_delta_file, write_delta_file
from hifi.deltas.metadata import ENCODINGS, DeltaMetadata, Encoding
from hifi.deltas.placement import (
    read_matching_rows,
    read_matching_task_head,
    write_matching_rows,
    write_matching_task_head,
)
from hifi.deltas.row_names import check_shapes, heads_of_rows, row_key, shapes_of
from hifi.errors import BackboneMismatchError, InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from hifi.backbones.heads import HeadId

__all__ = ["DeltaMetadata", "HeadDelta", "row_key"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadDelta:
    """What fine-tuning made of one backbone: the tuned rows, and the task head.

    Attributes:
        rows: W', the tuned rows, by ``row_key`` name ``layers.{l}.heads.{h}.{projection}.{part}``:
            weight ``[rows, D]`` as in ``nn.Linear``, bias ``[rows]`` where the backbone has one.
            Where ``values`` is ``differences`` the weights are W'−W; biases are never differences.
        task_head: parameter name in the model to tensor; empty where there is none.
        metadata: what the delta says about itself; ``rows_fingerprint`` is that of ``base``.
        base: W, the rows that W' replaces, under the same names; None where they are not known.
            Only saving in bfloat16 or int8 needs them.

    Tensors are copied to the CPU, in the dtype given: a model that trains on does not change them.

    Raises:
        InvalidArgumentError: row names or shapes that cannot be those of one backbone.
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
        """Tell whether ``rows`` holds W', or W'−W as a bfloat16 or int8 file does."""
        return "rows" if self.metadata.encoding == "float32" else "differences"

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """List the tuned heads, in order."""
        return heads_of_rows(self.rows)

    @classmethod
    def load(cls, path: str | Path) -> HeadDelta:
        """Read a delta file; nothing in it is executed.

        Args:
            path: the file, trusted or not.

        Raises:
            DeltaFileError: no such file, or a malformed, truncated or foreign one.
        """
        content = read_delta_file(path)
        return cls(rows=content.rows, task_head=content.task_head, metadata=content.metadata)

    def save(self, path: str | Path, *, encoding: Encoding = "float32") -> None:
        """Write a delta file, atomically; equal deltas give equal bytes.

        Args:
            path: the file; one that exists is replaced.
            encoding: ``float32`` holds the rows themselves and is exact; ``bfloat16`` and ``int8``
                hold differences to the backbone, in a half and a quarter of the size.

        Raises:
            InvalidArgumentError: an unknown encoding; one that calls for the backbone's rows where
                they are not known (see ``with_base``); no heads; numbers that are not finite;
                float64 values that the file's float32 would round.
            StorageError: the file cannot be written, as ``write_atomically`` says it.
        """
        if encoding not in ENCODINGS:
            raise InvalidArgumentError("encoding", value=encoding, limit=f"one of {ENCODINGS}")
        write_delta_file(
            path,
            content=DeltaContent(
                rows=self._values_for(encoding),
                task_head=self.task_head,
                metadata=replace(self.metadata, encoding=encoding),
            ),
        )

    def check_backbone(self, model: PreTrainedModel) -> None:
        """Refuse a freshly loaded model that is not exactly the delta's backbone.

        ``merge``, ``with_base`` and ``to_lora`` look at the rows that the delta replaces; this
        looks at every weight of the backbone, and at what its configuration computes with them.

        Args:
            model: as stored: nothing merged into it, in the dtype of the delta's tuning.

        Raises:
            BackboneMismatchError: another backbone, another revision or another dtype.
            UnsupportedArchitectureError: the model's heads are not known.
        """
        found = backbone_fingerprint(model)
        kind, ours = str(model.config.model_type), self.metadata.architecture
        if kind != ours:
            raise BackboneMismatchError(
                f"the head delta was tuned on {self._backbone_name()}, which is a {ours!r}; the "
                f"model is a {kind!r}"
            )
        if found != self.metadata.fingerprint:
            raise BackboneMismatchError(
                f"the head delta was tuned on {self._backbone_name()}, whose fingerprint is "
                f"{self.metadata.fingerprint}; the model's is {found}: load that backbone, that "
                "revision, in the dtype in which it was stored"
            )

    def with_base(self, model: PreTrainedModel) -> HeadDelta:
        """Learn the backbone's rows, so that every encoding can be saved.

        Of the model, only the rows that the delta replaces are checked: see ``check_backbone``.

        Args:
            model: the delta's backbone, with any task head, the delta not merged into it; in the
                dtype of the tuning (``metadata.compute_dtype``) or a wider one.

        Returns:
            The same delta with ``base``; differences have become rows.

        Raises:
            BackboneMismatchError: another architecture; heads, shapes or biases that differ; rows
                in the place of W whose hash is not ``rows_fingerprint``, as in another backbone or
                revision and where the delta is merged already; a float16 model; one in a
                dtype narrower than the tuning's, which would give differences to a rounded W.
            TunerError: a tuner, an adapter or a quantiser holds the model's projections.
            UnsupportedArchitectureError: the model's heads are not known.
        """
        present = self._read_base(model)
        self._check_width(present)
        metadata = replace(self.metadata, encoding="float32")
        return replace(self, rows=self._rows_in_place_of(present), base=present, metadata=metadata)

    def rows_on(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Give W', as ``merge`` puts it into a model.

        Args:
            model: the delta's backbone, with any task head, the delta not merged into it; in
                float32, bfloat16 or float64.

        Returns:
            The rows by name, on the CPU, not yet rounded to the model's dtype.

        Raises:
            BackboneMismatchError, TunerError, UnsupportedArchitectureError: as ``merge`` does.
        """
        return self._rows_in_place_of(self._read_base(model))

    def merge(self, model: PreTrainedModel, *, task_head: bool = True) -> HeadDelta:
        """Put the tuned rows and the task head into a model, in place.

        The rows are copied, so at equal dtype the merged model is the tuned one bit for bit.
        All checks come before the first write: a merge that is refused changes nothing. Checked
        are the architecture, the rows about to be replaced, to bfloat16's precision, and the task
        head's names and shapes. A backbone that differs elsewhere is not noticed: see
        ``check_backbone``.

        Args:
            model: the delta's backbone in float32, bfloat16 or float64, with a matching task head.
            task_head: False leaves the model's task head alone.

        Returns:
            The displaced rows and task head, itself a head delta: merging it back restores the
            model bit for bit.

        Raises:
            BackboneMismatchError: another architecture; heads, shapes or biases that differ; rows
                in the place of W whose hash is not ``rows_fingerprint``, as in another backbone or
                revision and where the delta is merged already; a float16 model.
            TaskHeadMismatchError: the model's task head differs in names or shapes; the delta's
                holds a parameter of the backbone other than a pooler's.
            TunerError: a tuner, an adapter or a quantiser holds the model's projections.
            UnsupportedArchitectureError: the model's heads are not known.
        """
        present = self._read_base(model)
        head = self.task_head if task_head else {}
        displaced_head = read_matching_task_head(model, head)
        rows = self._rows_in_place_of(present)
        merged = {name: rows[name].to(tensor.dtype) for name, tensor in present.items()}
        displaced = HeadDelta(
            rows=present,
            task_head=displaced_head,
            metadata=self._displaced_metadata(present, merged),
            base=merged,
        )
        write_matching_rows(model, merged)
        write_matching_task_head(model, head)
        return displaced

    def to_lora(self, directory: str | Path, model: PreTrainedModel) -> None:
        """Write the delta as an adapter that stock PEFT loads, atomically.

        Of the backbone, only the rows that the delta replaces are checked: see ``check_backbone``.

        Args:
            directory: a folder that does not exist yet, or is empty.
            model: the delta's backbone with a matching task head, the delta not merged into it; in
                the dtype of the tuning (``metadata.compute_dtype``) or a wider one.

        Raises:
            BackboneMismatchError: another architecture; heads, shapes or biases that differ; rows
                in the place of W whose hash is not ``rows_fingerprint``, as in another backbone or
                revision and where the delta is merged already; a float16 model; one in a
                dtype narrower than the tuning's, which would give differences to a rounded W.
            TaskHeadMismatchError: the model's task head differs in names or shapes; the delta's
                holds a parameter of the backbone other than a pooler's, or a part of a module.
            StorageError: the folder exists and is not empty, or cannot be written.
            TunerError: a tuner, an adapter or a quantiser holds the model's projections.
            UnsupportedArchitectureError: the model's heads are not known.
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
        """Give rows or differences, whichever ``encoding`` stores."""
        if encoding == self.metadata.encoding:
            return self.rows
        if self.values == "differences" or self.base is None:
            raise InvalidArgumentError(
                "encoding",
                value=encoding,
                limit=f"{self.metadata.encoding}, until the delta knows the backbone's rows: "
                "load the backbone and save delta.with_base(model)",
            )
        return differences(self.rows, base=self.base, compute_dtype=self.metadata.compute_dtype)

    def _read_base(self, model: PreTrainedModel) -> Mapping[str, Tensor]:
        """Copy W out of a model, and refuse one that is not the delta's."""
        present = read_matching_rows(model, self.rows, architecture=self.metadata.architecture)
        self._check_rows_fingerprint(present)
        return present

    def _rows_in_place_of(self, present: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Give W' for a model whose rows are ``present``."""
        if self.values == "rows":
            return self.rows
        return add_differences(self.rows, base=present, compute_dtype=self.metadata.compute_dtype)

    def _check_rows_fingerprint(self, present: Mapping[str, Tensor]) -> None:
        wanted, found = self.metadata.rows_fingerprint, rows_fingerprint(present)
        if found == wanted:
            return
        merged = self.values == "rows" and found == rows_fingerprint(self.rows)
        hint = (
            "it is already merged into this model"
            if merged
            else "load that backbone in float32 or bfloat16; if something is merged into it, merge "
            "back what it displaced"
        )
        raise BackboneMismatchError(
            f"the head delta replaces rows of {self._backbone_name()} whose fingerprint is "
            f"{wanted}; the model's rows have {found}: {hint}"
        )

    def _check_width(self, present: Mapping[str, Tensor]) -> None:
        """Refuse a W that has lost digits which the tuning saw: W'−W would hold the loss."""
        tuned_at: torch.dtype = getattr(torch, self.metadata.compute_dtype)
        for name, tensor in present.items():
            if torch.promote_types(tensor.dtype, tuned_at) != tensor.dtype:
                found = str(tensor.dtype).removeprefix("torch.")
                wanted = self.metadata.compute_dtype
                raise BackboneMismatchError(
                    f"the rows were tuned on {self._backbone_name()} in {wanted}, and the model is "
                    f"{found} ({name}), too narrow to tell what the tuning changed: load the "
                    f"backbone with dtype=torch.{wanted}"
                )

    def _backbone_name(self) -> str:
        revision = self.metadata.revision
        return f"{self.metadata.model!r} (revision {revision or 'not recorded'})"

    def _displaced_metadata(
        self, present: Mapping[str, Tensor], merged: Mapping[str, Tensor]
    ) -> DeltaMetadata:
        dtypes = [tensor.dtype for tensor in present.values()]
        return replace(
            self.metadata,
            rows_fingerprint=rows_fingerprint(merged),
            compute_dtype=str(dtypes[0]).removeprefix("torch."),
            task=None,
            labels=None,
            training={},
            encoding="float32",
        )
