"""In training, skip computations that do not reach a task head which reads only the first token."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from hifi.backbones.heads import first_token_layer
from hifi.tuning.row_sliced import TunedProjection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from transformers import PreTrainedModel
    from transformers.models.bert.modeling_bert import BertSelfAttention

_ATTENTIONS = ("eager", "sdpa")  # their masks have the shape and meaning expected here


@contextmanager
def first_token_only(model: PreTrainedModel) -> Iterator[bool]:
    """Make the last layer compute only its first token in training mode.

    A classifier of the BERT family or a DeBERTa reads only the first token of the last layer. That
    layer then needs query, attention, W^O and feed-forward block of that token only: other rows
    reach neither the logits nor any gradient. For a single query, the products can also be
    reordered so that keys and values are never computed, except in DeBERTa, whose attention has
    further products: it stays whole. Logits and gradients are unchanged up to rounding; the last
    hidden state has one token, and the last layer returns no attention shares. In eval mode nothing
    is skipped. Replicas of torch's DataParallel are not supported. Run backward passes inside the
    block: gradient checkpointing recomputes the layer there.

    Args:
        model: a transformers model, tuned or not.

    Yields:
        True if the model supports it; False if not, and nothing is changed.

    Example:
        >>> with first_token_only(model):
        ...     model(**batch).loss.backward()
    """
    last = first_token_layer(model)
    if last is None:
        yield False
        return
    output = model.get_submodule(last.output)
    hook = output.register_forward_pre_hook(_keep_first_token)
    shorter: AbstractContextManager[None] = nullcontext()
    if last.attention is not None:
        attention = cast("BertSelfAttention", model.get_submodule(last.attention))
        shorter = _attending(attention, output=output)
    try:
        with shorter:
            yield True
    finally:
        hook.remove()


@contextmanager
def _attending(attention: BertSelfAttention, *, output: nn.Module) -> Iterator[None]:
    """Replace a self-attention's ``forward`` by :func:`_attend` during a block."""
    own = vars(attention)
    if "forward" in own:  # someone else has replaced it
        yield
        return
    own["forward"] = partial(_attend, attention, output=output, whole=attention.forward)
    try:
        yield
    finally:
        del own["forward"]


def _keep_first_token(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Cut ``[B, S, D]`` arguments to ``[B, 1, D]`` (a forward pre-hook)."""
    if not module.training:
        return None
    return tuple(
        argument[:, :1].contiguous() if isinstance(argument, Tensor) else argument
        for argument in arguments
    )


def _attend(
    attention: BertSelfAttention,
    hidden_states: Tensor,  # X, [B, S, D]
    attention_mask: Tensor | None = None,  # [B, 1, 1 or S, S]
    *,
    output: nn.Module,
    whole: Callable[..., tuple[Tensor, ...]],
    **arguments: object,
) -> tuple[Tensor | None, ...]:
    """Attend from the first token only; replaces a self-attention's ``forward``.

    For one query neither keys nor values are computed, because the products can be reordered:
    q·(X W_Kᵀ + b_K) = (q W_K)·X + q·b_K  and  p (X W_Vᵀ + b_V) = (p X) W_Vᵀ + Σp b_V.

    Legend: B samples, S tokens, D hidden size, H heads, D' head size.
    """
    if not (output.training and _can_reorder(attention) and _is_shared(attention_mask)):
        return whole(hidden_states, attention_mask=attention_mask, **arguments)
    size = attention.attention_head_size
    key, key_bias = _by_head(attention.key, size=size)
    value, value_bias = _by_head(attention.value, size=size)
    query = attention.query(hidden_states[:, :1])  # [B, 1, D]
    query = query.unflatten(-1, (-1, size)).squeeze(1)  # [B, H, D']
    asked = (query.transpose(0, 1) @ key).transpose(0, 1)  # q W_K, [B, H, D]
    scores = asked @ hidden_states.transpose(1, 2)  # [B, H, S]
    # Equal for all tokens, so it changes no share; it gives the bias its (zero) gradient.
    scores = scores + (query * key_bias).sum(-1, keepdim=True)
    precise = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(precise) * attention.scaling
    if attention_mask is not None:
        scores = _mask(scores, attention_mask[:, 0, :1])
    shares = nn.functional.dropout(
        scores.softmax(-1), attention.dropout.p, training=attention.training
    ).to(query.dtype)
    seen = shares @ hidden_states  # p X, [B, H, D]
    heads = (seen.transpose(0, 1) @ value.transpose(1, 2)).transpose(0, 1)  # [B, H, D']
    heads = heads + shares.sum(-1, keepdim=True) * value_bias
    return heads.flatten(1).unsqueeze(1), None  # [B, 1, D]


def _can_reorder(attention: BertSelfAttention) -> bool:
    """Return whether the projections only apply their weights: no adapters, hooks or offloading."""
    return attention.config._attn_implementation in _ATTENTIONS and all(  # noqa: SLF001
        type(projection) in (nn.Linear, TunedProjection)
        and not projection._forward_hooks  # noqa: SLF001 - not public anywhere
        and not projection._forward_pre_hooks  # noqa: SLF001
        and "forward" not in vars(projection)
        for projection in (attention.query, attention.key, attention.value)
    )


def _is_shared(mask: Tensor | None) -> bool:
    """Return whether all heads and queries of a sample share one mask."""
    return mask is None or (mask.dim() == 4 and mask.shape[1] == 1)


def _by_head(projection: nn.Linear | TunedProjection, *, size: int) -> tuple[Tensor, Tensor]:
    """Return weight ``[H, D', D]`` and bias ``[H, D']``, with gradients to the trained rows."""
    if isinstance(projection, TunedProjection):
        weight, bias = projection.trainable_weight()
    else:
        weight, bias = projection.weight, projection.bias
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return weight.unflatten(0, (-1, size)), bias.unflatten(0, (-1, size))


def _mask(scores: Tensor, mask: Tensor) -> Tensor:
    """Apply a mask, which is False or a large negative number at hidden tokens."""
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores + mask
