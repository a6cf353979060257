"""What an administrator says of a database: how it is reached, and how much one answer may hold."""

from __future__ import annotations

import ssl
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator

from tools.connectors.base import Options, refuse_closed


class SqlOptions(Options):
    """How to reach the database."""

    host: str = Field(min_length=1, max_length=255, description="Host name, address, or the folder of a unix socket.")
    port: int = Field(default=5432, ge=1, le=65535)
    database: str = Field(min_length=1, max_length=63)
    user: str = Field(min_length=1, max_length=63, description="A role that can only read what the tools need.")
    password: SecretStr | None = Field(default=None)
    # `schema` would shadow a method of pydantic's.
    search_path: str = Field(
        default="public", max_length=255, alias="schema", description="Schema in which names are looked up."
    )
    tls: Literal["disable", "prefer", "require", "verify-full"] = Field(
        default="prefer", description="`verify-full` in production: encrypted, and the server proves its name."
    )
    ca: str | None = Field(
        default=None,
        max_length=65_536,
        description="Certificates in PEM, one of which must have signed the server's. For `verify-full`; without it"
        " libpq looks into `~/.postgresql/root.crt`.",
    )
    statement_timeout_seconds: int = Field(
        default=10, ge=1, le=600, description="The database stops a statement after this."
    )
    max_rows: int = Field(default=1000, ge=1, le=100_000, description="Rows of one answer at the most.")
    max_bytes: int = Field(default=1_048_576, ge=1024, le=16_777_216, description="Bytes of one answer at the most.")
    max_connections: int = Field(
        default=5, ge=1, le=100, description="Connections that each process keeps at the most."
    )
    comment: bool = Field(
        default=True,
        description="Say in a comment at the end of each statement who asks, for which call, so that the database's own"
        " log can be read beside the ledger.",
    )

    model_config = Options.model_config | {"populate_by_name": True}

    @field_validator("host")
    @classmethod
    def _can_be_reached(cls, value: str, info: ValidationInfo) -> str:
        refuse_closed(value, info)
        return value

    @field_validator("ca")
    @classmethod
    def _are_certificates(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                ssl.create_default_context(cadata=value)
        except (ssl.SSLError, TypeError) as error:  # The latter for what is not ASCII.
            raise ValueError("give certificates in PEM: -----BEGIN CERTIFICATE----- and so on") from error
        return value
