"""The engine: the process that owns the device, and the worker's handle on it."""
