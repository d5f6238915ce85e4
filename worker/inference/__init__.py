"""The inference process: it has backbones at hand, and puts head deltas into them."""
