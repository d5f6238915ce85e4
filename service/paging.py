"""The size of a page of a list, for the gateway, its client and the commands."""

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
