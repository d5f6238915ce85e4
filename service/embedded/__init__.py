"""`hifi serve`: gateway, worker and inference process on one machine, out of one folder."""
