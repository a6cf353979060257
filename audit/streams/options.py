"""What a stream is set up with: the one way in for admin and REST."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import pydantic
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

from audit.models import Record
from audit.streams.models import Stream
from keyring.keys import DecryptionError

SYSLOG_PORT = 6514
_LONGEST_PEM = 100_000
_HEADER = re.compile(r"[\x20-\x7e]{1,4000}")


class Refused(ValueError):
    """`errors` says what is wrong with each field."""

    def __init__(self, errors: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {said}" for name, said in errors.items()))
        self.errors = dict(errors)


def _certificates(text: str) -> str:
    if text.strip():
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError("Give certificates as PEM, beginning with -----BEGIN CERTIFICATE-----") from error
    return text.strip()


def _pem(text: str) -> str:
    if text.strip() and "-----BEGIN " not in text:
        raise ValueError("Give it as PEM, beginning with -----BEGIN")
    return text.strip()


def _header(secret: SecretStr) -> SecretStr:
    if not _HEADER.fullmatch(secret.get_secret_value()):
        raise ValueError("Use printable ASCII characters")
    return secret


def _key(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < 24:
        raise ValueError("Give at least 24 characters")
    return secret


Certificates = Annotated[str, Field(max_length=_LONGEST_PEM), AfterValidator(_certificates)]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid")

    ca: Certificates = Field(
        "", description="PEM of the authorities that may have signed the receiver's certificate. Empty: the system's."
    )
    timeout_seconds: int = Field(
        15, ge=1, le=120, description="How long connecting and sending may take, each, in seconds."
    )


class SyslogOptions(_Options):
    """RFC 5424 over TLS (RFC 5425), with octet counting."""

    server_name: str = Field(
        "", max_length=253, description="The name in the receiver's certificate, where it is not that of the address."
    )
    client_certificate: Certificates = Field("", description="PEM of our certificate, where the receiver asks for one.")
    facility: int = Field(13, ge=0, le=23, description="Syslog facility: 13 is log audit, 16 to 23 are local.")
    max_message_bytes: int = Field(
        8192, ge=2048, le=1_048_576, description="Longest message. The detail of a longer one is left out."
    )
    resend: int = Field(
        1000, ge=0, le=100_000, description="How many messages are repeated on a new connection. See the guide."
    )
    client_key: SecretStr | None = Field(None, max_length=_LONGEST_PEM, description="PEM of our certificate's key.")


class WebhookOptions(_Options):
    """POST of JSON, signed as Standard Webhooks describes it."""

    batch_records: int = Field(200, ge=1, le=1000, description="Most records in one request.")
    signing_secret: Annotated[SecretStr, AfterValidator(_key)] = Field(
        ..., max_length=500, description="Key of the HMAC, at least 24 characters; `whsec_` and base64, or any text."
    )
    authorization: Annotated[SecretStr, AfterValidator(_header)] | None = Field(
        None, max_length=4000, description="Sent as the header Authorization, where the receiver asks for one."
    )


OPTIONS: dict[str, type[SyslogOptions] | type[WebhookOptions]] = {
    Stream.Kind.SYSLOG: SyslogOptions,
    Stream.Kind.WEBHOOK: WebhookOptions,
}
Options = SyslogOptions | WebhookOptions


def secret_names(kind: str) -> tuple[str, ...]:
    """The options of the kind that are secret."""
    fields = OPTIONS[kind].model_fields.items() if kind in OPTIONS else ()
    return tuple(name for name, info in fields if "SecretStr" in str(info.annotation))


def stored_secrets(stream: Stream) -> dict[str, str]:
    """The secrets that the stream has; none when they cannot be decrypted any more."""
    try:
        return dict(stream.secrets or {})
    except DecryptionError:
        return {}


def options_of(stream: Stream) -> Options:
    """The stream's options with its secrets. Raises Refused where they are not complete."""
    return _validated(stream.kind, {**stream.options, **stored_secrets(stream)})


def configure(
    stream: Stream, before: Stream | None, options: Mapping[str, Any], secrets: Mapping[str, str | None]
) -> None:
    """Check the stream as a whole and set its options and secrets, unsaved. Raises Refused.

    A secret that is not named is kept, None removes it. What the receiver is told as a password (`authorization`) must
    be given again when the address changes, so that nobody can have it sent to themselves.
    """
    errors = _wrong(stream, before)
    if misplaced := set(options) & set(secret_names(stream.kind)):
        errors |= dict.fromkeys(misplaced, "This is a secret: give it among the secrets.")
    if unknown := set(secrets) - set(secret_names(stream.kind)):
        errors |= dict.fromkeys(unknown, "There is no such secret.")
    if errors:
        raise Refused(errors)
    kept = {name: value for name, value in stored_secrets(stream).items() if name not in secrets}
    given = {name: value for name, value in secrets.items() if value is not None}
    moved = before is not None and (before.address, before.options.get("ca", "")) != (
        stream.address,
        options.get("ca", ""),
    )
    if moved and "authorization" in kept:
        raise Refused({"authorization": "The address changed: give this again, so that it is not sent elsewhere."})
    found = _validated(stream.kind, {**options, **kept, **given})
    hidden = set(secret_names(stream.kind))
    stream.options = found.model_dump(mode="json", exclude=hidden)
    stream.secrets = {**kept, **given} or None


def _validated(kind: str, values: dict[str, Any]) -> Options:
    try:
        found = OPTIONS[kind].model_validate(values)
    except pydantic.ValidationError as error:
        raise Refused(
            {
                str((each["loc"] or ("",))[0]): each["msg"].removeprefix("Value error, ").rstrip(".") + "."
                for each in error.errors(include_url=False, include_input=False, include_context=False)
            }
        ) from error
    if isinstance(found, SyslogOptions) and bool(found.client_certificate) != bool(found.client_key):
        missing = "client_key" if found.client_certificate else "client_certificate"
        raise Refused({missing: "A certificate and its key belong together."})
    return found


def _wrong(stream: Stream, before: Stream | None) -> dict[str, str]:
    errors: dict[str, str] = {}
    if stream.kind not in OPTIONS:
        return {"kind": "There is no such kind."}
    if before is not None and before.kind != stream.kind:
        errors["kind"] = "The kind is fixed: make another stream."
    try:
        receiver(stream)
    except ValueError as error:
        errors["address"] = str(error)
    known = {"kinds": Record.Kind.values, "decisions": Record.Decision.values}
    for name, words in known.items():
        if strange := sorted(set(getattr(stream, name)) - set(words)):
            errors[name] = f"Choose from {', '.join(words)}: there is no {', '.join(strange)}."
    return errors


def receiver(stream: Stream) -> tuple[str, int]:
    """Host and port of the stream's address. Raises ValueError with what is wrong."""
    if stream.kind == Stream.Kind.SYSLOG:
        return _host_and_port(stream.address)
    try:
        parts = urlsplit(stream.address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme != "https" or not host or not re.fullmatch(r"[\x21-\x7e]+", stream.address):
        raise ValueError("Give an https URL, such as https://siem.example.com/mcpsite.")
    if parts.username or parts.password or parts.fragment:
        raise ValueError("Give the URL without user name, password and fragment.")
    return host, port or 443


def _host_and_port(address: str) -> tuple[str, int]:
    said = "Give a host and a port, such as siem.example.com:6514."
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname or "", parts.port or SYSLOG_PORT
    except ValueError as error:
        raise ValueError(said) from error
    whole = {host, f"{host}:{port}", f"[{host}]", f"[{host}]:{port}"}
    if not host or address.lower() not in whole or not re.fullmatch(r"[a-z0-9._:-]{1,253}", host):
        raise ValueError(said)
    if ":" in host:
        ipaddress.IPv6Address(host)
    return host, port


def filters_of(stream: Stream) -> dict[str, Sequence[str]]:
    """The stream's filter as JSON can hold it."""
    return {"kinds": stream.kinds, "decisions": stream.decisions, "tools": stream.tools}
