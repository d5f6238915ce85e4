"""Backbones: the rows of each head, finding and loading models, and keeping them in memory."""
