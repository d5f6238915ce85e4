"""The contract between gateway and workers: tables, job states, claims, artifacts, the queue."""
