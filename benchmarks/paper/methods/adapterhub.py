"""Adapters of AdapterHub's package ``adapters``, whose model is in a process of its own.

The loop is that of the other rivals, and so are its batches, rates, optimizer and start: a network
here sends each batch there and gets logits, then gradients.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.paper.methods.rival import Rival, head_names, trained_by
from benchmarks.paper.rivals.adapters_child import RANDOM_STATE
from benchmarks.paper.rivals.channel import Message, parts
from benchmarks.paper.rivals.child import start
from hifi.backbones.models import quiet_transformers

if TYPE_CHECKING:
    from benchmarks.paper.methods.base import Outcome, Run
    from benchmarks.paper.rivals.child import Child
    from hifi.data.settings import Hyperparameters
    from hifi.training.preparation import Prepared

ENVIRONMENT = "adapters"
# AdapterHub's names, of its default configurations. Bottlenecks behind attention and feed-forward
# of every layer, of D / 16 with swish (Houlsby et al., ICML 2019, who train the norms too) …
HOULSBY = "double_seq_bn"
# … and of D / 32 with GELU, their matrices Σ over 4 of Aᵢ ⊗ Bᵢ, Bᵢ of rank 1 and Aᵢ the same in all
# layers (Mahabadi et al., NeurIPS 2021).
COMPACTER = "compacter"


def adapter(configuration: str | None) -> Callable[[Run], Outcome]:
    """Return the ``run`` of a method that trains an adapter and the task head.

    The seconds of selection are those of loading the model a second time. The memory that a line of
    the result file has is without the process of the model.

    Args:
        configuration: of the adapter, as AdapterHub calls it; None trains the task head alone.
    """

    def run(run: Run) -> Outcome:
        with start(ENVIRONMENT, module="adapters_child") as child:
            return trained_by(partial(adapted, child=child, configuration=configuration))(run)

    return run


def adapted(
    ready: Prepared,
    settings: Hyperparameters,  # noqa: ARG001 - every builder's
    *,
    child: Child,
    configuration: str | None,
) -> Rival:
    """Load a prepared model in a child, and train an adapter and the task head there.

    Args:
        ready: the model, its task head as it starts.
        settings: of the run.
        child: runs ``adapters_child``.
        configuration: of the adapter, as AdapterHub calls it; None for none.

    Raises:
        ChildError: the child has not loaded it.
    """
    with tempfile.TemporaryDirectory() as folder:
        with quiet_transformers():
            ready.loaded.model.save_pretrained(folder)
        content = {
            "folder": folder,
            "adapter": configuration,
            "names": sorted(head_names(ready)),
        }
        message = Message(content, {RANDOM_STATE: torch.get_rng_state()})
        answer = child.ask("load", message)
    torch.set_rng_state(answer.tensors[RANDOM_STATE])
    values = answer.part("trained")
    trained = {name: nn.Parameter(values[name]) for name in answer.content["names"]}
    return Remote(RemoteNetwork(child, trained))


class Remote(Rival):
    """Trains the parameters of a network whose model is elsewhere."""

    network: RemoteNetwork

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the optimizer changes, by their names in the model."""
        return dict(self.network.trained)


class RemoteNetwork(nn.Module):
    """A model in another process, called as one in this process is.

    Its logits can be differentiated in training mode. Random numbers, those of dropout, are drawn
    from this process's state.

    Args:
        child: has the model.
        trained: its parameters that are trained, by name; the values here count.

    Attributes:
        trained: as above.
    """

    def __init__(self, child: Child, trained: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        self.trained = dict(trained)  # no parameters of a module, whose names may have no dots
        self._child = child

    def forward(self, **inputs: Tensor) -> SequenceClassifierOutput:
        """Return the model's output for a batch, of which only the logits are known here."""
        logits = _Remotely.apply(self, inputs, *self.trained.values())  # type: ignore[no-untyped-call]
        return SequenceClassifierOutput(logits=logits)

    def compute(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of a batch, ``[B, classes]``."""
        tensors = parts(inputs=inputs, trained=self.trained)
        tensors[RANDOM_STATE] = torch.get_rng_state()
        answer = self._child.ask("logits", Message({"training": self.training}, tensors)).tensors
        torch.set_rng_state(answer[RANDOM_STATE])
        return answer["logits"]

    def gradients(self, of_logits: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of what is trained, given that of the logits just computed."""
        answer = self._child.ask("gradients", Message(tensors={"logits": of_logits})).tensors
        return tuple(answer.get(name) for name in self.trained)


class _Remotely(torch.autograd.Function):
    """The logits of a remote network, as a function of what is trained."""

    @staticmethod
    def forward(
        ctx: Any,
        network: RemoteNetwork,
        inputs: Mapping[str, Tensor],
        *_trained: Tensor,
    ) -> Tensor:
        ctx.network = network
        return network.compute(inputs)

    @staticmethod
    def backward(ctx: Any, *of_logits: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.network.gradients(*of_logits)
