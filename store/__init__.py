"""What the gateway and the workers agree on: tables, job states, claims, artifacts, the queue."""
