"""What token classification is made of: the encoder, words in tokens, and what labels mean."""
