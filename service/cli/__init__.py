"""The commands of ``hifi`` that use or run a server, one module each."""
