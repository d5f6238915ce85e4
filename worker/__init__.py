"""The worker: runs jobs with the library, and the inference process."""
