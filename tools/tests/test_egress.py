from __future__ import annotations

import ipaddress
import socket

import pytest
from aiohttp import web

from tools import egress as egress_module
from tools.connectors.base import ConnectorError
from tools.connectors.http1 import HttpClient
from tools.egress import Egress, EgressDenied, Rule, is_closed
from tools.tests.servers import Counter, make_server

INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.255.255.254", "169.254.1.1",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.9.9",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1",
    "64:ff9b::8.8.8.8", "64:ff9b:1::1", "100::1", "2001::1", "2001:10::1", "2001:20::1", "2001:db8::1",
    "2002:7f00:1::", "2002:808:808::", "3fff::1", "4000::1", "5f00::1", "8000::1", "fc00::1", "fd12::1", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "::1%lo",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "64:ff9b:1::169.254.169.254",
    "2002:a9fe:a9fe::1", "::ffff:0:169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192",
    "fd00:ec2::254", "fd00:ec2:0:0:0:0:0:254", "fd20:ce::254", "fe80::a9fe:a9fe%eth0", "64:ff9b::a83f:8110",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
FULL_WIDTH = "\uff11\uff12\uff17.0.0.1"
# What people (and `getaddrinfo`) take for loopback.
LOOPBACK_SPELLINGS = [
    "localhost", "127.1", "127.0.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "017700000001", "0177.0.0.1",
    FULL_WIDTH, "127\u30020\u30020\u30021", "\u2460\u2461\u2466.0.0.1", "0", "0.0.0.0", "::1",
    "::ffff:127.0.0.1", "::ffff:7f00:1", "::",
]  # fmt: skip


def make_egress(*rules: tuple[str, int | None]) -> Egress:
    return Egress(Rule.parse(network, port) for network, port in rules)


def answer_names(monkeypatch, *answers: list[str]) -> None:
    """Let the resolver give these answers, one after the other; the last one stays."""
    left = list(answers)

    async def lookup(host: str, port: int) -> list[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    monkeypatch.setattr(egress_module, "lookup", lookup)


async def get(egress: Egress, url: str) -> int:
    client = HttpClient(url, {}, egress, 4)
    try:
        return (await client.request("GET", {}, b"")).status
    finally:
        await client.close()


@pytest.mark.parametrize("address", INSIDE)
def test_an_inside_address_is_refused(address):
    with pytest.raises(EgressDenied, match="is an inside address: an administrator must allow it"):
        make_egress().check_address(address, 443)


@pytest.mark.parametrize("address", OUTSIDE)
def test_an_outside_address_is_allowed(address):
    make_egress().check_address(address, 443)


@pytest.mark.parametrize("address", METADATA)
def test_no_rule_opens_a_metadata_service(address):
    everything = make_egress(("0.0.0.0/0", None), ("::/0", None))
    with pytest.raises(EgressDenied, match="metadata service of a cloud: it is never reached"):
        everything.check_address(address, 80)


def test_a_rule_opens_its_network_and_port_only():
    egress = make_egress(("10.1.0.0/16", 8443), ("fd12::/64", None))
    egress.check_address("10.1.2.3", 8443)
    egress.check_address("::ffff:10.1.2.3", 8443)
    egress.check_address("fd12::7", 1)
    for address, port in [("10.1.2.3", 8444), ("10.2.0.1", 8443), ("127.0.0.1", 8443), ("fd12:0:0:1::7", 1)]:
        with pytest.raises(EgressDenied):
            egress.check_address(address, port)


def test_a_rule_for_a_translator_does_not_open_what_lies_behind_it():
    egress = make_egress(("64:ff9b::/96", None), ("2002::/16", None))
    egress.check_address("64:ff9b::8.8.8.8", 443)
    egress.check_address("2002:808:808::1", 443)
    for address in ("64:ff9b::10.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::1"):
        with pytest.raises(EgressDenied, match="inside address"):
            egress.check_address(address, 443)
    make_egress(("64:ff9b::/96", None), ("10.0.0.0/8", None)).check_address("64:ff9b::10.0.0.1", 443)


def test_a_rule_for_loopback_opens_loopback():
    make_egress(("::1/128", None)).check_address("::1", 80)
    make_egress(("127.0.0.1/32", None)).check_address("127.0.0.1", 80)


def test_every_address_of_the_inside_networks_is_inside():
    for network in egress_module._INSIDE:
        for address in (network[0], network[-1]):
            assert egress_module.is_inside(address), address
    assert all(not egress_module.is_inside(ipaddress.ip_address(address)) for address in OUTSIDE)


@pytest.mark.parametrize("network", ["10.0.0.1/8", "example.com", "", "10.0.0.0/33", "127.1", "1.2.3.4:80"])
def test_a_rule_that_is_none_is_refused(network):
    with pytest.raises(ValueError, match=r"."):
        Rule.parse(network, None)


def test_rules_can_be_replaced():
    egress = make_egress(("127.0.0.0/8", None))
    egress.check_address("127.0.0.1", 1)
    egress.replace([])
    with pytest.raises(EgressDenied):
        egress.check_address("127.0.0.1", 1)


@pytest.mark.parametrize("folder", ["/run/postgresql", "/run/postgresql/", "/run/./postgresql"])
def test_a_unix_folder_is_opened_by_its_rule(folder):
    make_egress(("unix:/run/postgresql", None)).check_socket(folder)


@pytest.mark.parametrize(
    "folder",
    ["/run", "/run/postgresql/x", "/run/postgresql/..", "/run/other/../postgresql", "/", "/run/postgresql,/tmp",
     "//run/postgresql", "run/postgresql", "@abstract", "/run/postgresql\0"],
)  # fmt: skip
def test_another_unix_folder_is_refused(folder):
    with pytest.raises(EgressDenied, match="an administrator must allow unix:"):
        make_egress(("unix:/run/postgresql", None), ("0.0.0.0/0", None)).check_socket(folder)


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS)
async def test_however_loopback_is_spelled_it_is_refused(host):
    with pytest.raises((EgressDenied, socket.gaierror)):
        await make_egress().resolve(host, 80)


@pytest.mark.parametrize("host", ["", "a" * 64 + ".example", "a\0b", "a..b", "x" * 5000, "host,127.0.0.1", "http://x"])
async def test_what_is_no_name_is_not_found(host):
    with pytest.raises(OSError, match=r"."):
        await make_egress().resolve(host, 80)


async def test_a_name_that_resolves_inside_is_refused(monkeypatch):
    answer_names(monkeypatch, ["10.0.0.5"])
    with pytest.raises(EgressDenied, match=r"10\.0\.0\.5:443 is an inside address"):
        await make_egress().resolve("inside.example.com", 443)


async def test_one_inside_address_among_others_refuses_the_name(monkeypatch):
    answer_names(monkeypatch, ["1.1.1.1", "127.0.0.1"])
    with pytest.raises(EgressDenied):
        await make_egress().resolve("mixed.example.com", 443)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", FULL_WIDTH, "[::ffff:127.0.0.1]", "localhost", "rebound"],
)
async def test_http_reaches_no_inside_server_however_it_is_written(monkeypatch, host):
    if host == "rebound":
        answer_names(monkeypatch, ["127.0.0.1"])
    handler = Counter()
    async with make_server(handler) as port:
        with pytest.raises((ConnectorError, ValueError)) as caught:
            await get(make_egress(), f"http://{host}:{port}/")
    assert handler.count == 0
    if isinstance(caught.value, ConnectorError):
        assert isinstance(caught.value.__cause__, EgressDenied | socket.gaierror)


async def test_http_says_which_address_was_refused_also_for_names_with_several(monkeypatch):
    answer_names(monkeypatch, ["::1", "127.0.0.1"])
    with pytest.raises(ConnectorError, match="inside address") as caught:
        await get(make_egress(), "http://both.example.com:1/")
    assert (caught.value.code, caught.value.sent) == ("egress_denied", False)


async def test_a_second_answer_of_the_resolver_leads_nowhere_else(monkeypatch):
    allowed, other = Counter(), Counter()
    async with make_server(allowed) as port, make_server(other, "127.0.0.2", port):
        answer_names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        egress = make_egress(("127.0.0.1/32", port))
        assert await get(egress, f"http://rebind.example.com:{port}/") == 200
        with pytest.raises(ConnectorError, match="inside address"):
            await get(egress, f"http://rebind.example.com:{port}/")
    assert (allowed.count, other.count) == (1, 0)


async def test_each_new_connection_of_one_client_is_checked_anew(monkeypatch):
    allowed, other = Counter(), Counter()
    async with make_server(allowed) as port, make_server(other, "127.0.0.2", port):
        answer_names(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        client = HttpClient(f"http://rebind.example.com:{port}/", {}, make_egress(("127.0.0.1/32", port)), 4)
        assert (await client.request("GET", {"Connection": "close"}, b"")).status == 200
        with pytest.raises(ConnectorError, match="inside address"):
            await client.request("GET", {}, b"")
        await client.close()
    assert (allowed.count, other.count) == (1, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(status):
    target = Counter()
    async with make_server(target, "127.0.0.2") as inner:

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"http://127.0.0.2:{inner}/latest/meta-data"})

        async with make_server(redirect) as port:
            assert await get(make_egress(("127.0.0.0/8", None)), f"http://127.0.0.1:{port}/") == status
    assert target.count == 0


async def test_proxies_of_the_environment_are_ignored(monkeypatch):
    proxy, handler = Counter(), Counter()
    async with make_server(proxy) as proxy_port, make_server(handler) as port:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        egress = make_egress(("127.0.0.1/32", None))
        assert await get(egress, f"http://127.0.0.1:{port}/") == 200
    assert (proxy.count, handler.count) == (0, 1)


async def test_a_refused_address_looks_like_a_failed_connection_to_http_clients():
    assert issubclass(EgressDenied, OSError)
    assert EgressDenied.code == "egress_denied"


@pytest.mark.parametrize("host", [*METADATA, "169.254.1.1", "fe80::1%eth0", "[fe80::1]", "2852039166", "0251.0376.1.1"])
def test_addresses_of_the_link_and_of_metadata_services_are_known_as_such(host):
    assert is_closed(host)


@pytest.mark.parametrize(
    "host", [*OUTSIDE, "10.0.0.1", "127.0.0.1", "::1", "localhost", "169.254.169.254.nip.io", "", "/run/x", "\0"]
)
def test_other_addresses_and_names_are_not(host):
    assert not is_closed(host)
