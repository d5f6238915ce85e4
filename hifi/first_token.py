"""Skip, while training, what a task head that reads only the first token never looks at."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hifi.backbone import first_token_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[bool]:
    """Let the last layer compute its first token alone, in training mode.

    A BERT-family classifier reads the last layer at the first token and nowhere else, so that
    layer's W^O and feed-forward block need that token only: their other rows reach neither the
    logits nor any gradient. Logits and gradients stay what they were, up to rounding; the last
    hidden state has one token. In eval mode nothing is skipped. Keep backward passes inside the
    block: gradient checkpointing runs the layer once more there.

    Args:
        model: a transformers model, tuned or not.

    Yields:
        True where the model allows it; False where it does not, and nothing is changed.

    Example:
        >>> with first_token_only(model):
        ...     model(**batch).loss.backward()
    """
    name = first_token_block(model)
    if name is None:
        yield False
        return
    hook = model.get_submodule(name).register_forward_pre_hook(_keep_first_token)
    try:
        yield True
    finally:
        hook.remove()


def _keep_first_token(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Cut ``[B, S, D]`` arguments to ``[B, 1, D]`` (a forward pre-hook)."""
    if not module.training:
        return None
    return tuple(
        argument[:, :1].contiguous() if isinstance(argument, Tensor) else argument
        for argument in arguments
    )
