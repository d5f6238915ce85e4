"""For operators: health, readiness, metrics, and the workers' backbones."""
