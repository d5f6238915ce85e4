"""For operators: health, readiness, metrics, the backbones that workers have."""
