"""Which names of a host mean this machine alone."""

from __future__ import annotations

import ipaddress


def loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there. Names other than localhost may lead anywhere."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(header: str) -> str:
    """The host that a `Host` header names, without its port.

    >>> host_of("localhost:8000"), host_of("[::1]:8000"), host_of("example.org")
    ('localhost', '[::1]', 'example.org')
    """
    name, closing, _ = header.strip().partition("]")
    return name + closing if closing else name.partition(":")[0]
