"""Rivals whose packages need an environment of their own: its making, and the processes in it."""
