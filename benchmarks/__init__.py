"""Benchmarks of HiFi and its rivals; `make bench` runs them."""
