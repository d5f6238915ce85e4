"""Speed and memory of selection and training."""
