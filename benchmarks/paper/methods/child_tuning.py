"""Child-Tuning_D: the weights that matter most for the task by Fisher information, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from benchmarks.paper.methods.base import file_bytes
from benchmarks.paper.methods.rival import Rival, head_names, train_only
from hifi.training.batching import evaluation_batches

if TYPE_CHECKING:
    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

SHARE = 0.3  # of the backbone's weights; its authors search 0.1, 0.2 and 0.3


class Child(Rival):
    """Trains the task head and the masked weights of the backbone.

    The gradients of all other weights are set to zero, and the backbone has no weight decay, so
    AdamW does not move them by a bit.

    Args:
        network: every parameter requires a gradient.
        masks: the weights to train, bool, by name of the backbone's parameters.
    """

    def __init__(self, network: nn.Module, *, masks: Mapping[str, Tensor]) -> None:
        super().__init__(network)
        self._masks = masks

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups; weight decay is for matrices of the task head."""
        trained = self.trained()
        head = [p for name, p in trained.items() if name not in self._masks and p.dim() > 1]
        decayed = {id(parameter) for parameter in head}
        others = [p for p in trained.values() if id(p) not in decayed]
        return [{"params": head}, {"params": others, "weight_decay": 0.0}]

    def after_backward(self) -> None:
        """Remove the gradients of the weights outside the masks."""
        for name, parameter in self.trained().items():
            if name in self._masks and parameter.grad is not None:
                parameter.grad.mul_(self._masks[name])

    def count_trained(self) -> int:
        """Count the masked weights and the task head."""
        trained = self.trained().items()
        return sum(int(self._masks[n].sum()) if n in self._masks else p.numel() for n, p in trained)

    def stored_bytes(self) -> int:
        """Return the size of a file with the task head, and of masked weights value and place."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained().items():
            if name not in self._masks:
                tensors[name] = parameter
                continue
            places = self._masks[name].flatten().nonzero()[:, 0]
            tensors[f"{name}.values"] = parameter.flatten()[places]
            tensors[f"{name}.places"] = places.to(torch.int32)
        return file_bytes(tensors)


def child_tuning(ready: Prepared, settings: Hyperparameters) -> Rival:
    """Train the task head and the ``SHARE`` of the backbone with the most Fisher information.

    Source: Xu et al., "Raise a Child in Large Language Model", EMNLP 2021. There the mask covers
    the encoder's layers, and embeddings are trained whole; here it covers the whole backbone.
    """
    model = ready.loaded.model
    train_only(model, {name for name, _ in model.named_parameters()})
    information = fisher_information(ready, batch_size=settings.batch_size)
    for name in head_names(ready):
        del information[name]
    return Child(model, masks=largest(information, share=SHARE))


def fisher_information(ready: Prepared, *, batch_size: int) -> dict[str, Tensor]:
    """Return the diagonal Fisher information, up to a factor, of every parameter.

    F = Σ over batches of (∂L/∂θ)², L the mean loss of a batch, as in the authors' code; the model
    is in eval mode, with the task head as it starts.
    """
    model, train, task = ready.loaded.model.eval(), ready.data.train, ready.data.task
    found = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for indices in evaluation_batches(train.lengths, batch_size=batch_size):
        batch = train.batch(indices)
        task.loss(model(**batch.inputs).logits, batch.targets).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name].addcmul_(parameter.grad, parameter.grad)
        model.zero_grad()
    return found


def largest(values: Mapping[str, Tensor], *, share: float) -> dict[str, Tensor]:
    """Return masks, bool, of the ``share`` of all entries that are the largest, at least one."""
    flat = torch.cat([value.flatten() for value in values.values()])
    chosen = flat.topk(max(1, round(share * len(flat)))).indices
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[chosen] = True
    parts = mask.split([value.numel() for value in values.values()])
    return {
        name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)
    }
