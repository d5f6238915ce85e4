"""Whom an address stands for when callers are counted."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_address

_PREFIX = 64  # bits; one customer gets at least this many addresses to choose from


def caller_of(host: str | None) -> str:
    """Return the key under which a remote address is counted.

    Args:
        host: an IPv4 or IPv6 address; None for a connection without one.

    Returns:
        An IPv4 address, also if it is mapped into IPv6; the /64 network of an IPv6 address; any
        other text unchanged.
    """
    try:
        address = ip_address((host or "").partition("%")[0])
    except ValueError:
        return host or ""
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Network((address, _PREFIX), strict=False))
