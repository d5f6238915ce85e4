"""The gateway, the queue and the whole service."""
