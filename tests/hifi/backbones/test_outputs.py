"""hifi.backbones.outputs: a forward pass with these arguments records and caches nothing."""

from __future__ import annotations

import inspect

import pytest

from hifi.backbones.outputs import RECORD_NOTHING, no_cache
from tests.architectures import NAMES, tiny_batch, tiny_model


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_would_record_and_cache_does_neither(name: str):
    base = tiny_model(name, attn_implementation="eager").base_model
    base.config.output_hidden_states = base.config.output_attentions = True
    base.config.use_cache = True
    names = inspect.signature(base.forward).parameters
    inputs = {key: value for key, value in tiny_batch(name).items() if key in names}
    output = base(**inputs, **RECORD_NOTHING, **no_cache(names))
    assert not {"hidden_states", "attentions", "past_key_values"} & set(output)


def test_a_model_without_a_cache_gets_no_such_argument():
    assert no_cache({"input_ids", "use_cache"}) == {"use_cache": False}
    assert no_cache({"pixel_values"}) == {}
