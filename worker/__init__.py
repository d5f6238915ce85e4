"""The worker, which runs jobs with the library, and the inference process."""
