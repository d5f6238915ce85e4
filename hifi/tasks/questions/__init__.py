"""What question answering is made of: the encoder, the search for spans, and their scores."""
