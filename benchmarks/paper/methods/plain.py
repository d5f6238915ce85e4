"""Methods that train some of the model's own parameters: all, the task head, the biases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.paper.methods.rival import Rival, head_names, train_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared


class HeadOnly(Rival):
    """Trains the task head; dropout is off in the frozen backbone, as in hifi's."""

    network: PreTrainedModel

    def set_training(self) -> None:
        """Enable dropout in the task head."""
        self.network.train()
        self.network.base_model.eval()


def full(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - every builder's
    """Train every parameter."""
    model = ready.loaded.model
    return train_only(model, {name for name, _ in model.named_parameters()})


def head_only(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - as above
    """Train the task head."""
    train_only(ready.loaded.model, head_names(ready))
    return HeadOnly(ready.loaded.model)


def bitfit(ready: Prepared, settings: Hyperparameters) -> Rival:  # noqa: ARG001 - as above
    """Train the biases, of norms too, and the task head (Ben-Zaken et al., ACL 2022)."""
    model = ready.loaded.model
    biases = {name for name, _ in model.named_parameters() if name.rpartition(".")[2] == "bias"}
    head = head_names(ready)
    return train_only(model, biases | head, head=head)
