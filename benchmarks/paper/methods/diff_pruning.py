"""Diff-Pruning: a difference for every weight, made sparse by an L0 penalty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.paper.methods.base import file_bytes
from benchmarks.paper.methods.child_tuning import largest
from benchmarks.paper.methods.rival import Rival, head_names, train_only
from hifi.errors import InvalidArgumentError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

# The authors' settings.
SHARE = 0.005  # of the backbone's weights that differ in the end
_LOW, _HIGH = -1.5, 1.5  # the interval to which the gates are stretched
_START = 5.0  # log α
_PENALTY = 1.25e-7
_GATE_RATE = 0.1


class Difference(nn.Module):
    """W = θ + z ⊙ w for one parameter θ, with hard concrete gates z in [0, 1].

    z = clamp(s·(r − l) + l, 0, 1), with s = σ(log α) in eval mode and
    s = σ(log u − log(1 − u) + log α), u uniform, while training; then P(z ≠ 0) is
    σ(log α − log(−l/r)). Once the gates are fixed, z is a mask.

    Args:
        theta: θ; it stays as it is.
    """

    mask: Tensor | None

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros_like(theta))
        self.log_alpha = nn.Parameter(torch.full_like(theta, _START))
        self.register_buffer("mask", None)

    def forward(self, theta: Tensor) -> Tensor:
        """Return W."""
        return theta + self.gates() * self.value

    def gates(self) -> Tensor:
        """Return z: the mask, a sample while training, else its value without noise."""
        if self.mask is not None:
            return self.mask
        logits: Tensor = self.log_alpha
        if self.training:
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + noise.logit()
        return (logits.sigmoid() * (_HIGH - _LOW) + _LOW).clamp(0, 1)

    def expected_count(self) -> Tensor:
        """Return the expected number of gates that are not zero."""
        return (self.log_alpha - math.log(-_LOW / _HIGH)).sigmoid().sum()

    @torch.no_grad()
    def fix(self, mask: Tensor) -> None:
        """Replace the gates by a mask; the difference keeps its value where the mask is one."""
        self.value.copy_(self.gates() * self.value * mask)
        self.log_alpha.requires_grad = False
        self.mask = mask.to(self.value.dtype)


class DiffPruned(Rival):
    """Trains differences with gates in the first half of the epochs, masked ones in the second.

    The authors train as many epochs in each phase as others in all; here both share them, so that
    every method makes as many steps.

    Args:
        network: a parametrized model.
        differences: of the backbone's parameters, by name.
    """

    def __init__(self, network: nn.Module, *, differences: dict[str, Difference]) -> None:
        super().__init__(network)
        self._differences = differences

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups: differences and gates have no weight decay."""
        gates = [each.log_alpha for each in self._differences.values()]
        values = [each.value for each in self._differences.values()]
        own = {id(parameter) for parameter in (*gates, *values)}
        head = [p for p in self.trained().values() if id(p) not in own]
        return [
            {"params": gates, "lr": _GATE_RATE, "weight_decay": 0.0},
            {"params": values, "weight_decay": 0.0},
            {"params": [p for p in head if p.dim() > 1]},
            {"params": [p for p in head if p.dim() <= 1], "weight_decay": 0.0},
        ]

    def penalty(self) -> Tensor | float:
        """Return λ·E‖z‖₀ until the gates are fixed."""
        if self._is_fixed:
            return 0.0
        counts = [each.expected_count() for each in self._differences.values()]
        return _PENALTY * torch.stack(counts).sum()

    def start_epoch(self, epoch: int, *, epochs: int) -> None:
        """Fix the gates at the beginning of the second phase: the largest differences stay."""
        if epoch != epochs // 2:
            return
        self.network.eval()
        with torch.no_grad():
            sizes = {
                name: (each.gates() * each.value).abs() for name, each in self._differences.items()
            }
        for name, mask in largest(sizes, share=SHARE).items():
            self._differences[name].fix(mask)

    def counts(self, epoch: int, *, epochs: int) -> bool:
        """Return whether the difference is sparse by now."""
        return epoch >= epochs // 2

    @property
    def _is_fixed(self) -> bool:
        return all(each.mask is not None for each in self._differences.values())

    def count_trained(self) -> int:
        """Count the weights that may differ in the end, and the task head."""
        counts = [int(each.gates().count_nonzero()) for each in self._differences.values()]
        return sum(counts) + sum(parameter.numel() for parameter in self._head().values())

    def stored_bytes(self) -> int:
        """Return the size of a file with the task head, and of each difference value and place."""
        tensors: dict[str, Tensor] = dict(self._head())
        for name, each in self._differences.items():
            places = each.gates().flatten().nonzero()[:, 0]
            tensors[f"{name}.values"] = each.value.flatten()[places]
            tensors[f"{name}.places"] = places.to(torch.int32)
        return file_bytes(tensors)

    def _head(self) -> dict[str, nn.Parameter]:
        own = {id(each.value) for each in self._differences.values()}
        own |= {id(each.log_alpha) for each in self._differences.values()}
        return {name: p for name, p in self.trained().items() if id(p) not in own}


def diff_pruning(ready: Prepared, settings: Hyperparameters) -> Rival:
    """Train a sparse difference of the backbone, and the task head.

    Source: Guo et al., "Parameter-Efficient Transfer Learning with Diff Pruning", ACL 2021, without
    groups.

    Raises:
        InvalidArgumentError: one epoch, which has no two phases.
    """
    epochs = settings.count_epochs(rows=len(ready.data.train))
    if epochs < 2:
        limit = "at least 2 with diff-pruning, which has two phases"
        raise InvalidArgumentError("epochs", value=epochs, limit=limit)
    model, head = ready.loaded.model, head_names(ready)
    train_only(model, head)
    names = [name for name, _ in model.named_parameters() if name not in head]
    return DiffPruned(model, differences={name: _add_difference(model, name) for name in names})


def _add_difference(model: PreTrainedModel, name: str) -> Difference:
    path, _, own_name = name.rpartition(".")
    module = model.get_submodule(path)
    difference = Difference(getattr(module, own_name))
    parametrize.register_parametrization(module, own_name, difference)
    return difference
