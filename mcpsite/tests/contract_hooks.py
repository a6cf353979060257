"""What schemathesis must not do: ask the same thing twice, and take away the token that it asks with, which it finds in
the list of tokens.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import schemathesis
from schemathesis.generation.meta import CoveragePhaseData

_asked: Counter[tuple[Any, ...]] = Counter()
# What one piece of our code answers, whichever operation it is about: to ask three of them is enough.
_SHARED = re.compile(r"\b(limit|ordering|cursor|Authorization|Content-Type|If-Match)\b")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Of all the wrong types of one field, as of whatever is said in the same words of one place, one is enough."""
    said = case.meta.phase.data
    if not isinstance(said, CoveragePhaseData):
        return True
    is_shared = _SHARED.search(f"{said.parameter} {said.description}") is not None
    place = "" if is_shared else case.operation.label
    question = (place, said.parameter_location, said.parameter, said.description)
    _asked[question] += 1
    return _asked[question] <= (3 if is_shared else 1)


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Send what would revoke it to an address where nothing is."""
    if (case.path_parameters or {}).get("id") == os.environ["CONTRACT_TOKEN_ID"]:
        case.path_parameters["id"] = "00000000-0000-0000-0000-000000000000"
