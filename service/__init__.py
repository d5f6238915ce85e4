"""The gateway: HTTP in front of the store, and the client of it."""
