"""The commands of ``hifi`` that speak with a server, or run one; each a module of its own."""
