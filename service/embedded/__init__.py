"""`hifi serve`: gateway, worker and inference process on one machine, with one folder."""
