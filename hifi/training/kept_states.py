"""The frozen prefix in a run: the hidden states of its splits, in groups that never change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from hifi.training.batching import Indices, length_groups
from hifi.tuning.prefix import FrozenLayers, States

if TYPE_CHECKING:
    from torch import Tensor

    from hifi.data.settings import Hyperparameters
    from hifi.tasks import Batch, Examples
    from hifi.training.preparation import Prepared, TaskData
    from hifi.tuning.states import StatePlaces

# A group whose states are lost is computed again for each of its samples, so groups are only as
# large as the device needs to be fast; docs/decisions/frozen-prefix.md has the measurements.
_GROUP_TOKENS = {"cpu": 64, "cuda": 2048}


class KeptStates:
    """Hidden states of a run's splits, kept between epochs.

    States are computed in groups of samples of similar length, which depend on the split's lengths
    and on the type of device alone. So the bits of a sample's states are the same in every epoch,
    in a resumed run, and wherever they were kept or not.

    Args:
        prefix: of the run's model.
        data: the splits.
    """

    def __init__(self, prefix: FrozenLayers, *, data: TaskData) -> None:
        self._prefix = prefix
        tokens = _GROUP_TOKENS[prefix.model.device.type]
        named = {"train": data.train, "validation": data.validation}
        self._splits = [
            _Split(name, examples, tokens=tokens)
            for name, examples in named.items()
            if examples is not None
        ]

    def of(self, examples: Examples, indices: Indices, batch: Batch) -> Tensor | None:
        """Return the states that enter the first tuned layer, ``[B, S, D]``.

        They are None for the test split: it is read once, so keeping its states gains nothing.

        Args:
            examples: the split.
            indices: the samples of the batch.
            batch: on the model's device, in its dtype.
        """
        split = next((each for each in self._splits if each.examples is examples), None)
        if split is None:
            return None

        def compute(index: int) -> States:
            group = split.group_of(int(indices[index]))
            model = self._prefix.model
            inputs = split.examples.batch(group).to(model.device, dtype=model.dtype).inputs
            return self._prefix.fill(inputs, keys=split.keys(group))

        keys = split.keys(indices)
        return self._prefix.states(batch.inputs, keys=keys, compute=compute)

    def running_from(self, states: Tensor) -> AbstractContextManager[None]:
        """Let the model start at its first tuned layer with these states, during a block."""
        return self._prefix.running_from(states)


class _Split:
    """A split and its groups."""

    def __init__(self, name: str, examples: Examples, *, tokens: int) -> None:
        self.examples = examples
        self._name = name
        self._groups = length_groups(examples.lengths, tokens=tokens)

    def keys(self, indices: Indices) -> list[tuple[str, int]]:
        return [(self._name, index) for index in indices.tolist()]

    def group_of(self, index: int) -> Indices:
        return self._groups[int(self._places[index])]

    @cached_property
    def _places(self) -> Indices:
        """The group of each sample."""
        places = np.empty(len(self.examples), dtype=np.int64)
        for number, group in enumerate(self._groups):
            places[group] = number
        return places


@contextmanager
def keeping_states(
    ready: Prepared, *, first: int, settings: Hyperparameters, places: StatePlaces
) -> Iterator[KeptStates | None]:
    """Keep hidden states during a run, if it reads them more than once.

    Args:
        ready: the model, tuned or not, and its data.
        first: the lowest layer that has, or may get, a tuned head.
        settings: the hyperparameters.
        places: where the states are kept.

    Yields:
        None if the run has one epoch, or ``first`` is 0. Neither depends on the machine: a run with
        states differs from one without by rounding.
    """
    if first == 0 or settings.count_epochs(rows=len(ready.data.train)) == 1:
        yield None
        return
    with FrozenLayers(ready.loaded.model, first=first, places=places) as prefix:
        yield KeptStates(prefix, data=ready.data)
