"""The listening socket: a clear sentence when it cannot be had."""

from __future__ import annotations

import socket

import pytest

from mcpsite.prelude import local_url
from mcpsite.web import CannotListen, listen


def test_it_listens_where_it_was_told():
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        assert client.getpeername() == listener.getsockname()


def test_a_port_in_use_is_named():
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(CannotListen, match=rf"Port {port} on 127\.0\.0\.1 is in use.*--port"):
            listen("127.0.0.1", port)


def test_an_address_of_another_machine_is_named():
    with pytest.raises(CannotListen, match=r"Cannot listen on 192\.0\.2\.1:8000"):
        listen("192.0.2.1", 8000)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://localhost:8000"),
        ("0.0.0.0", "http://localhost:8000"),
        ("192.0.2.7", "http://192.0.2.7:8000"),
        ("2001:db8::7", "http://[2001:db8::7]:8000"),
    ],
)
def test_the_local_url_is_what_a_browser_here_understands(host, url):
    assert local_url(host, 8000) == url
