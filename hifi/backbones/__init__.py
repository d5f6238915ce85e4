"""Backbones: which rows belong to a head, finding and loading models, what stays in memory."""
