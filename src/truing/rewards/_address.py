"""Where a reward's requests may go: a public address, found once and kept."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from truing.errors import RolloutError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
CARRY_IPV4 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
"""NAT64 (RFC 6052) and the old IPv4-compatible addresses: their last 32 bits are one of IPv4."""
LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
"""RFC 8215: a network's own; where the IPv4 address stands in it is its own affair."""


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `shown` is all of it that messages may hold: a path can be a secret."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def shown(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def target(url: str) -> Target:
    """The parts of `url`. Raises ValueError for what is not plain http(s)://host[:port]/path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("the url must begin with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ValueError("the url holds a name or password: use headers_env")
    if not parts.hostname or parts.fragment:
        raise ValueError("the url must name a host, and no #fragment")
    if any(character <= " " or character > "~" for character in url):
        raise ValueError("the url holds a blank or a character beyond ASCII: write it encoded")
    port = parts.port if parts.port is not None else {"http": 80, "https": 443}[parts.scheme]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname, port, path)


def is_public(address: Address) -> bool:
    """Whether it is an address of the open internet, also behind what carries IPv4 in IPv6."""
    if isinstance(address, ipaddress.IPv6Address):
        carried = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in LOCAL_NAT64:
            return False
        if any(address in network for network in CARRY_IPV4):
            carried.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(inner) for inner in carried if inner is not None):
            return False
        if address.ipv4_mapped is not None or any(address in n for n in CARRY_IPV4):
            return True
        if address.is_site_local or address.is_reserved:
            return False
    return address.is_global and not address.is_multicast


def resolve(where: Target, allow_private: bool) -> list[str]:
    """Its numeric addresses, asked for once. Raises RolloutError if one is not public.

    OSError (no such name, no name server) is left to the caller's retries.
    """
    found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        if not allow_private and not is_public(ipaddress.ip_address(text.partition("%")[0])):
            raise RolloutError(
                f"{where.shown} leads to {text}, which is not a public address",
                where="http",
                remedy="check the url; set allow_private: true if that machine is meant",
            )
    return addresses
