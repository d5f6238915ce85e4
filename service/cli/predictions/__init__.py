"""``hifi jobs predict``: predict for texts, images, or the rows of a file of any length."""
