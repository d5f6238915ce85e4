"""The paper's figures, and one of our own: each is computed once to numbers and drawn from them."""
