"""The bank and the inference process under load."""
