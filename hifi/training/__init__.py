"""Training: the loop and everything a fine-tune needs around it."""
