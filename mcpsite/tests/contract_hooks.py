"""What schemathesis must not do: ask the same thing twice, and take away the token that it asks with, which it finds in
the list of tokens.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import schemathesis
from schemathesis.generation.meta import CoveragePhaseData

_asked: Counter[tuple[Any, ...]] = Counter()


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Of all the wrong types of one field, as of whatever is said in the same words of one place, one is enough."""
    said = case.meta.phase.data
    if not isinstance(said, CoveragePhaseData):
        return True
    question = (case.operation.label, said.parameter_location, said.parameter, said.description)
    _asked[question] += 1
    return _asked[question] == 1


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Send what would revoke it to an address where nothing is."""
    if (case.path_parameters or {}).get("id") == os.environ["CONTRACT_TOKEN_ID"]:
        case.path_parameters["id"] = "00000000-0000-0000-0000-000000000000"
