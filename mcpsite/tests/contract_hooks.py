"""What schemathesis must not do: take away the token that it asks with, which it finds in the list of tokens."""

from __future__ import annotations

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Send what would revoke it to an address where nothing is."""
    if (case.path_parameters or {}).get("id") == os.environ["CONTRACT_TOKEN_ID"]:
        case.path_parameters["id"] = "00000000-0000-0000-0000-000000000000"
