"""Tuning: train only the selected heads' rows, in any training loop."""

from hifi.tuning.prefix import FrozenPrefix
from hifi.tuning.states import StatePlaces
from hifi.tuning.tuner import HeadTuner, detach

__all__ = ["FrozenPrefix", "HeadTuner", "StatePlaces", "detach"]
