"""What the inference process keeps in memory: backbones and head deltas, and what is evicted."""
