"""Where connectors may connect: the one gate for every outgoing connection.

An address outside is allowed. An address inside (loopback, link-local, private, shared, reserved, multicast, and IPv6
forms that carry one of these) is refused unless a rule of an administrator names it. A name is resolved once for each
connection, all of its addresses are checked, and the connection is made to a checked address, so that a second answer
of the resolver cannot lead elsewhere. HTTP clients use no proxy of the environment and follow no redirect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

# Python's `is_global` of 3.11 calls several of these global: the list is ours (RFC 6890 and the IANA registries).
_INSIDE: tuple[IPNetwork, ...] = tuple(
    ipaddress.ip_network(network)
    for network in [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # Of IPv6 only 2000::/3 is given out as global unicast, and not all of it.
        "::/3",
        "4000::/2",
        "8000::/1",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
    ]
)
# The metadata services of clouds hand out credentials: no rule opens them.
_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.0.23", "169.254.42.42",
                    "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254",
                    "fd00:42::42", "fe80::a9fe:a9fe")
)  # fmt: skip
# IPv6 networks whose addresses carry an IPv4 address in their last 32 bits (RFC 2765, 6052, 8215).
_CARRIERS = tuple(ipaddress.IPv6Network(network) for network in ("::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))


class EgressDenied(OSError):
    """The address may not be reached. An OSError, so that HTTP clients treat it as a failed connection."""

    code = "egress_denied"


@dataclass(frozen=True, slots=True)
class Rule:
    """One address inside that is allowed: a network and perhaps a port, or the folder of a unix socket."""

    network: IPNetwork | PurePosixPath
    port: int | None = None

    @classmethod
    def parse(cls, network: str, port: int | None) -> Rule:
        """From the form in which administrators write it. Raises ValueError."""
        if network.startswith("unix:"):
            return cls(PurePosixPath(network[5:]), None)
        return cls(ipaddress.ip_network(network), port)


def plain(address: IPAddress) -> IPAddress:
    """The IPv4 address that an IPv6 address stands for, if it does (mapped), else itself."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def carried(address: IPAddress) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which a gateway would translate an IPv6 address, if it is of such a kind."""
    if address.version == 4:
        return None
    if address.sixtofour:
        return address.sixtofour
    if any(address in network for network in _CARRIERS):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_closed(host: str) -> bool:
    """Whether `host` is an address, in any of the forms that a resolver takes, of the link or of a metadata service."""
    try:
        address = plain(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):  # It is a name.
            return False
    return any(each in _METADATA or each.is_link_local for each in (address, carried(address) or address))


def is_inside(address: IPAddress) -> bool:
    """Whether the address is one that only a rule can open."""
    address = plain(address)
    return any(address.version == network.version and address in network for network in _INSIDE)


class Egress:
    """The rules in force. `replace` swaps them for connections that are made from then on."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self.replace(rules)

    def replace(self, rules: Iterable[Rule]) -> None:
        """Put other rules in force."""
        self._rules = tuple(rules)

    def check_address(self, text: str, port: int) -> None:
        """Raise EgressDenied unless this address and port may be reached."""
        address = plain(ipaddress.ip_address(text.partition("%")[0]))
        for each in (address, carried(address) or address):
            if each in _METADATA:
                raise EgressDenied(f"{address} is a metadata service of a cloud: it is never reached.")
            if is_inside(each) and not self._allowed(each, port):
                raise EgressDenied(f"{_place(address, port)} is an inside address: an administrator must allow it.")

    def _allowed(self, address: IPAddress, port: int) -> bool:
        return any(
            not isinstance(rule.network, PurePosixPath)
            and rule.network.version == address.version
            and address in rule.network
            and rule.port in (None, port)
            for rule in self._rules
        )

    def check_socket(self, folder: str) -> None:
        """Raise EgressDenied unless sockets in this folder may be used."""
        wanted = PurePosixPath(folder)
        if ".." in wanted.parts or not any(rule.network == wanted for rule in self._rules):
            raise EgressDenied(f"Sockets in {folder} are not allowed: an administrator must allow unix:{folder}.")

    async def resolve(self, host: str, port: int) -> list[str]:
        """The checked addresses of `host`. Raises EgressDenied, also when only one of them is refused, or OSError."""
        try:
            addresses = await lookup(host, port)
        except ValueError as error:  # No name at all: too long, a NUL, not IDNA.
            raise socket.gaierror(socket.EAI_NONAME, "This is not the name of a host.") from error
        for address in addresses:
            self.check_address(address, port)
        return addresses


async def lookup(host: str, port: int) -> list[str]:
    """The addresses that the system's resolver knows for `host`."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def _place(address: IPAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
