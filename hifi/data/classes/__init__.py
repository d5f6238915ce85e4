"""Classes: which names look alike, and which a checkpoint's task head has."""
