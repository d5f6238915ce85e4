"""Measurements: what HiFi costs and what it brings, next to its rivals; `make bench` runs them."""
