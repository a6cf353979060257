"""What the API's description says of our ways to authenticate. Imported for its effect: the classes register."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """API tokens and JWTs."""

    target_class = "access.rest.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """RFC 6750."""
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API token (`mcps_…`) or the access token of a session.",
        }


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The admin's session."""

    target_class = "access.rest.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """A cookie; changes need the CSRF token."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}
