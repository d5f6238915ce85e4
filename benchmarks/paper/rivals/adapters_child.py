"""A model with an adapter of AdapterHub's, in its own environment; the harness trains it.

The harness sends a batch and the values of what is trained, and later the gradient of the logits;
it gets the logits and the gradients. So its own loop has the loss, the clipping and the optimizer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForSequenceClassification

from benchmarks.paper.rivals.channel import Message, parts, serve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedModel

_ADAPTER = "rival"
RANDOM_STATE = "random_state"


class Network:
    """The model, once it is loaded.

    The random state comes with every request that draws numbers and goes back with the answer, so
    that they are drawn as if the model were in the harness.
    """

    _model: PreTrainedModel
    _trained: dict[str, nn.Parameter]
    _logits: Tensor

    def load(self, message: Message) -> Message:
        """Load a checkpoint, add the adapter, and answer with the start of what is ``trained``.

        The request has the ``folder``, the ``adapter`` as AdapterHub calls its configuration, None
        for none, and the ``names`` of the parameters that are trained beside it. The answer has the
        ``names`` of all that are, in the model's order.
        """
        content = message.content
        model = AutoModelForSequenceClassification.from_pretrained(content["folder"])
        names = set(content["names"])
        torch.set_rng_state(message.tensors[RANDOM_STATE])
        if content["adapter"] is not None:
            names |= _add_adapter(model, content["adapter"])
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in names)
        self._model = model
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return _answer(parts(trained=self._trained), names=list(self._trained))

    def logits(self, message: Message) -> Message:
        """Answer with the logits of the ``inputs``, of the model with the ``trained`` values.

        In ``training`` dropout is enabled, and the gradients may be asked for next.
        """
        with torch.no_grad():
            for name, value in message.part("trained").items():
                self._trained[name].copy_(value)
        is_training = message.content["training"]
        torch.set_rng_state(message.tensors[RANDOM_STATE])
        self._model.train(is_training)
        with torch.set_grad_enabled(is_training):
            self._logits = self._model(**message.part("inputs")).logits
        return _answer({"logits": self._logits})

    def gradients(self, message: Message) -> Message:
        """Answer with the gradients of what is trained, given that of the last ``logits``."""
        self._model.zero_grad()
        self._logits.backward(message.tensors["logits"])
        found = {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        return Message(tensors=found)


def _answer(tensors: Mapping[str, Tensor], **content: Sequence[str]) -> Message:
    return Message(content, {**tensors, RANDOM_STATE: torch.get_rng_state()})


def _add_adapter(model: Any, configuration: str) -> set[str]:
    """Add an adapter, and return the names of its parameters that are trained."""
    import adapters  # noqa: PLC0415 - the tests train without an adapter, in our environment

    before = {name for name, _ in model.named_parameters()}
    adapters.init(model)
    model.add_adapter(_ADAPTER, config=configuration)
    model.train_adapter(_ADAPTER)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return trained - before


if __name__ == "__main__":
    network = Network()
    serve({"load": network.load, "logits": network.logits, "gradients": network.gradients})
