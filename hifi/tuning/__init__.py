"""Tuning: train only the selected heads' rows, in any training loop."""

from hifi.tuning.tuner import HeadTuner, detach

__all__ = ["HeadTuner", "detach"]
