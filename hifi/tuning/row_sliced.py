"""The row-sliced projection: a frozen weight with some rows that are trained separately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from hifi.errors import TunerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _RowSlicedLinear(torch.autograd.Function):
    """``x Wᵀ + b`` with a weight gradient for the tuned rows only.

    Legend: N tokens, D inputs, R outputs of the projection, m tuned rows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,  # [..., D]
        weight: Tensor,  # [R, D], tuned rows already in place
        bias: Tensor | None,  # [R]
        tuned_weight: Tensor,  # [m, D]; only its gradient is computed here
        tuned_bias: Tensor | None,  # [m]
        blocks: tuple[slice, ...],  # the m tuned rows
    ) -> Tensor:
        """Multiply by the whole weight; save what the backward pass needs."""
        ctx.save_for_backward(inputs, weight)
        ctx.blocks = blocks
        ctx.tuned_dtype = tuned_weight.dtype
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the inputs and of the tuned rows."""
        inputs, weight = ctx.saved_tensors
        # Flatten before any product: attention returns the keys' gradients transposed, and a
        # product of three dimensions with two would then run one sample at a time.
        grad = grad.flatten(0, -2)  # [N, R]
        grad_inputs = (grad @ weight).view_as(inputs) if ctx.needs_input_grad[0] else None
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
            tuned_grad = torch.cat([grad[:, block] for block in ctx.blocks], dim=1)  # [N, m]
            if ctx.needs_input_grad[3]:
                grad_weight = (tuned_grad.T @ inputs.flatten(0, -2)).to(ctx.tuned_dtype)
            if ctx.needs_input_grad[4]:
                grad_bias = tuned_grad.sum(0, dtype=ctx.tuned_dtype)
        return grad_inputs, None, None, grad_weight, grad_bias, None


class TunedProjection(nn.Module):
    """A projection with a frozen weight, except for some rows that are kept separately in float32.

    The rows are copied into the frozen weight before every use, not only when their version
    changes: fused optimizers write parameters without changing the version. They are not views of
    the weight: a view would break under ``.to()``, ``deepcopy`` and saving. Run the backward pass
    before changing the rows: the next forward pass overwrites their old values.

    The state dict is that of the plain projection with the current rows in place, in float32 so
    that a run resumes exactly.

    Args:
        plain: the projection to replace; its parameters are taken over, not copied.
        rows: int64 ``[m]``, the tuned output rows.
    """

    frozen_weight: nn.Parameter
    frozen_bias: nn.Parameter | None
    tuned_bias: nn.Parameter | None
    rows: Tensor

    def __init__(self, plain: nn.Linear | Conv1D, *, rows: Tensor) -> None:
        super().__init__()
        self._blocks = _blocks(rows)
        # In a tuple, so that it is not a child: this module owns its parameters.
        self._plain = (plain,)
        self.transposed = isinstance(plain, Conv1D)
        self.register_parameter("frozen_weight", cast("nn.Parameter", plain.weight))
        self.register_parameter("frozen_bias", plain.bias)
        weight = plain.weight.detach().T if self.transposed else plain.weight.detach()
        self.tuned_weight = nn.Parameter(weight[rows].float().clone())
        frozen_bias: Tensor | None = plain.bias
        bias = None if frozen_bias is None else nn.Parameter(frozen_bias.detach()[rows].float())
        self.register_parameter("tuned_bias", bias)
        self.register_buffer("rows", rows.to(plain.weight.device), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The whole weight as the plain projection stores it, tuned rows in place."""
        self._place_rows()
        return self.frozen_weight

    @property
    def bias(self) -> Tensor | None:
        """The whole bias, tuned rows in place."""
        self._place_rows()
        return self.frozen_bias

    def _parts(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter, bool]]:
        """Yield weight and bias: name, frozen and tuned parameter, whether stored transposed."""
        yield "weight", self.frozen_weight, self.tuned_weight, self.transposed
        if self.frozen_bias is not None and self.tuned_bias is not None:
            yield "bias", self.frozen_bias, self.tuned_bias, False

    @torch.no_grad()
    def _place_rows(self) -> None:
        for _, frozen, tuned, is_transposed in self._parts():
            rows = tuned.detach().to(frozen.dtype)
            rows = rows.T if is_transposed else rows
            frozen.data.index_copy_(int(is_transposed), self.rows, rows)

    def forward(self, inputs: Tensor) -> Tensor:
        """Project ``[..., D]`` to ``[..., R]``, in autocast's dtype if it is on."""
        self._place_rows()
        weight: Tensor = self.frozen_weight
        bias: Tensor | None = self.frozen_bias
        device = inputs.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
            inputs, weight = inputs.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        with torch.autocast(device, enabled=False):
            projected: Tensor = _RowSlicedLinear.apply(  # type: ignore[no-untyped-call]
                inputs,
                weight.T if self.transposed else weight,
                bias,
                self.tuned_weight,
                self.tuned_bias,
                self._blocks,
            )
        return projected

    def trainable_weight(self) -> tuple[Tensor, Tensor | None]:
        """Copy weight ``[R, D]`` and bias ``[R]``; gradients flow back to the tuned rows.

        This is for products other than ``forward``'s; it allocates a gradient of the whole weight.
        """
        frozen = self.frozen_weight.T if self.transposed else self.frozen_weight
        weight = frozen.index_copy(0, self.rows, self.tuned_weight.to(frozen.dtype))
        if self.frozen_bias is None or self.tuned_bias is None:
            return weight, None
        bias = self.tuned_bias.to(self.frozen_bias.dtype)
        return weight, self.frozen_bias.index_copy(0, self.rows, bias)

    def plain(self) -> nn.Linear | Conv1D:
        """Return the plain projection, with the tuned rows in place and the same storage."""
        self._place_rows()
        (plain,) = self._plain
        plain.register_parameter("weight", self.frozen_weight)
        plain.register_parameter("bias", self.frozen_bias)
        return plain.train(self.training)

    def tuned_slice(self, rows: slice) -> tuple[Tensor, Tensor | None]:
        """Copy contiguous tuned rows: weight ``[rows, D]`` and bias ``[rows]``, float32."""
        start = int((self.rows == rows.start).nonzero())
        place = slice(start, start + rows.stop - rows.start)
        bias = self.tuned_bias
        return self.tuned_weight.detach()[place].clone(), (
            None if bias is None else bias.detach()[place].clone()
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        refuse_dtype_change(fn, dtypes=(self.frozen_weight.dtype, self.tuned_weight.dtype))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        self._place_rows()
        for name, frozen, tuned, is_transposed in self._parts():
            value = frozen if keep_vars else frozen.detach()
            if value.dtype != tuned.dtype:
                rows = tuned.detach().T if is_transposed else tuned.detach()
                value = frozen.detach().to(tuned.dtype)
                value.index_copy_(int(is_transposed), self.rows, rows)
            destination[prefix + name] = value

    @torch.no_grad()
    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if strict:
            own = {prefix + "weight", prefix + "bias"}
            unexpected_keys += [k for k in state_dict if k.startswith(prefix) and k not in own]
        for name, frozen, tuned, is_transposed in self._parts():
            value = state_dict.get(prefix + name)
            if value is None:
                missing_keys.append(prefix + name)
            elif value.shape != frozen.shape:
                error_msgs.append(
                    f"size mismatch for {prefix}{name}: {tuple(value.shape)} in the state dict, "
                    f"{tuple(frozen.shape)} in the model"
                )
            else:
                frozen.data.copy_(value)
                stored = value.T if is_transposed else value
                tuned.data.copy_(stored[self.rows.to(stored.device)])


def _blocks(rows: Tensor) -> tuple[slice, ...]:
    """Group successive rows into slices; in bfloat16 these are 20 times faster than indexing."""
    runs: list[slice] = []
    for row in rows.tolist():
        if runs and runs[-1].stop == row:
            runs[-1] = slice(runs[-1].start, row + 1)
        else:
            runs.append(slice(row, row + 1))
    return tuple(runs)


def refuse_dtype_change(fn: Callable[[Tensor], Tensor], *, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise if a conversion of a tuned model changes one of ``dtypes``.

    Args:
        fn: the function that ``nn.Module._apply`` would apply to every parameter.
        dtypes: the dtypes that must not change.

    Raises:
        TunerError: ``fn`` changes one of them.
    """
    if any(fn(torch.empty(0, dtype=dtype)).dtype != dtype for dtype in dtypes):
        raise TunerError(
            "the dtype of a tuned model cannot be changed: its tuned rows stay float32 and its "
            "backbone keeps the dtype it was loaded with; detach the tuner first"
        )
