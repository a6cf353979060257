"""Options and secrets of a source, and the spec of a tool, are what their connector says they are."""

from __future__ import annotations

import pytest

from tools.configuration import Refused, configure, specify
from tools.connectors.sql_options import SqlOptions
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db
OPTIONS = {"host": "db.example.com", "database": "desk", "user": "reader"}


def make_source(**values) -> DataSource:
    return DataSource(**{"name": "desk", "kind": "sql", **values})


def refused(source: DataSource, options, secrets=None) -> dict[str, list[str]]:
    with pytest.raises(Refused) as caught:
        configure(source, options, secrets or {})
    return caught.value.errors


def test_secrets_are_kept_apart_from_options():
    source = make_source()
    configure(source, OPTIONS, {"password": "hunter2"})
    assert source.secrets == {"password": "hunter2"}
    assert source.options["port"] == 5432
    assert "hunter2" not in str(source.options)


def test_a_secret_that_is_not_named_is_kept_and_none_removes_it():
    source = make_source()
    configure(source, OPTIONS, {"password": "hunter2"})
    configure(source, {**OPTIONS, "max_rows": 5}, {})
    assert source.secrets == {"password": "hunter2"}
    configure(source, OPTIONS, {"password": None})
    assert source.secrets is None


@pytest.mark.parametrize("change", [{"host": "evil.example.com"}, {"port": 5433}, {"tls": "disable"}])
def test_a_kept_secret_is_not_sent_to_another_address(change):
    source = make_source()
    configure(source, OPTIONS, {"password": "hunter2"})
    assert list(refused(source, {**OPTIONS, **change})) == ["password"]
    configure(source, {**OPTIONS, **change}, {"password": "hunter2"})


def test_errors_are_told_at_their_option():
    assert list(refused(make_source(), {**OPTIONS, "port": 99999999})) == ["port"]
    assert "host" in refused(make_source(), {"database": "desk", "user": "reader"})
    assert "nonsense" in refused(make_source(), {**OPTIONS, "nonsense": 1})


def test_secrets_among_the_options_and_unknown_secrets_are_refused():
    assert "password" in refused(make_source(), {**OPTIONS, "password": "hunter2"})
    assert "nonsense" in refused(make_source(), OPTIONS, {"nonsense": "x"})


def test_no_error_repeats_a_secret():
    with pytest.raises(Refused) as caught:
        configure(make_source(), {"port": "x"}, {"password": "canary-1234"})
    assert "canary" not in str(caught.value)


def test_a_statement_must_declare_what_it_uses():
    tool = Tool(source=make_source(), name="find")
    with pytest.raises(Refused):
        specify(tool, {"description": "Finds", "statement": "SELECT :missing", "parameters": []})
    specify(tool, {"description": "Finds", "statement": "SELECT 1"})
    assert tool.spec["statement"] == "SELECT 1"


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "2852039166", "0xa9fea9fe", "169.254.43518", "169.254.7.7", "100.100.100.200"]
)
def test_an_address_that_is_never_reached_is_not_saved(host):
    assert "is never reached" in str(refused(make_source(), {**OPTIONS, "host": host})["host"])
    upstream = DataSource(name="upstream", kind="mcp")
    for url in (f"http://{host}/mcp", f"https://{host}:8443/latest"):
        assert "is never reached" in str(refused(upstream, {"url": url})["url"])


@pytest.mark.parametrize("host", ["[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]"])
def test_neither_is_one_of_ipv6(host):
    assert "is never reached" in str(refused(DataSource(name="u", kind="mcp"), {"url": f"http://{host}/mcp"})["url"])
    assert "is never reached" in str(refused(make_source(), {**OPTIONS, "host": host.strip("[]")})["host"])


def test_addresses_that_a_rule_may_open_and_names_are_saved():
    for host in ("127.0.0.1", "10.0.0.1", "::1", "metadata.internal", "/run/postgresql", "1.1.1.1"):
        configure(make_source(), {**OPTIONS, "host": host}, {})


def test_what_is_stored_already_can_be_read_whatever_its_address():
    SqlOptions.model_validate({**OPTIONS, "host": "169.254.169.254"})


def test_certificates_must_be_some():
    for wrong in ("x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "ü"):
        assert list(refused(make_source(), {**OPTIONS, "ca": wrong})) == ["ca"]
