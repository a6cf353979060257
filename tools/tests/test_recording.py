"""A policy for each argument: what stands in the clear, masked, encrypted, or nowhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audit.datakeys import Subject
from tools.recording import TREATMENTS, PolicyRefused, Recording, checked, compiled, effective, subject_hash

KEY = b"k" * 32


def make(policy: dict[str, Any]) -> Recording:
    found = compiled(effective(checked(policy)), KEY)
    assert found is not None
    return found


def shown(policy: dict[str, Any], arguments: dict[str, Any]) -> Any:
    facts = make(policy).told(arguments)
    return json.loads(facts["shown"]) if "shown" in facts else None


def kept(policy: dict[str, Any], arguments: dict[str, Any]) -> Any:
    facts = make(policy).told(arguments)
    if "some_arguments" not in facts:
        return arguments
    return json.loads(facts["some_arguments"]) if facts["some_arguments"] else None


def test_without_a_policy_there_is_nothing_to_do() -> None:
    assert compiled(effective(None, {}), KEY) is None
    assert compiled(effective({"otherwise": "encrypted", "arguments": {}}), KEY) is None


@pytest.mark.parametrize(
    ("how", "value", "left"),
    [
        ("clear", 42, 42),
        ("clear", {"a": [1]}, {"a": [1]}),
        ("last4", "4111111111111111", "•••1111"),
        ("last4", "1234567", "•••"),
        ("last4", 123456789, "•••6789"),
        ("domain", "ada@example.com", "•••@example.com"),
        ("domain", "nobody", "•••"),
        ("length", "twelve chars", "••• (12 characters)"),
        ("last4", None, "•••"),
        ("last4", ["4111111111111111", True], ["•••1111", "•••"]),
    ],
)
def test_each_treatment_shows_what_it_says(how: str, value: Any, left: Any) -> None:
    policy, arguments = {"arguments": {"it": how}}, {"it": value, "other": "x"}
    assert shown(policy, arguments) == {"it": left}
    assert kept(policy, arguments) is arguments


def test_what_is_encrypted_is_not_shown_and_what_is_dropped_is_not_kept() -> None:
    policy = {"arguments": {"a": "encrypted", "b": "dropped"}}
    assert shown(policy, {"a": 1, "b": 2}) is None
    assert kept(policy, {"a": 1, "b": 2}) == {"a": 1}
    assert kept(policy, {"b": 2}) is None
    assert kept(policy, {"a": 1}) == {"a": 1}


def test_a_pointer_reaches_into_objects_and_lists_and_a_star_is_every_name() -> None:
    policy = {"arguments": {"/people/*/mail": "domain", "/people/*/street": "dropped", "/people/1/name": "clear"}}
    arguments = {
        "people": [{"mail": "a@x.org", "street": "s", "name": "Ada"}, {"name": "Bob", "street": "t"}],
        "n": 1,
    }
    assert shown(policy, arguments) == {"people": [{"mail": "•••@x.org"}, {"name": "Bob"}]}
    assert kept(policy, arguments) == {"people": [{"mail": "a@x.org", "name": "Ada"}, {"name": "Bob"}], "n": 1}


def test_the_most_specific_rule_wins() -> None:
    policy = {"arguments": {"address": "clear", "/address/street": "dropped", "/address/zip": "encrypted"}}
    arguments = {"address": {"street": "s", "zip": "z", "city": "Paris"}}
    assert shown(policy, arguments) == {"address": {"city": "Paris"}}
    assert kept(policy, arguments) == {"address": {"zip": "z", "city": "Paris"}}


def test_names_with_slashes_and_tildes_are_written_as_in_rfc_6901() -> None:
    assert shown({"arguments": {"/a~1b/c~0d": "clear"}}, {"a/b": {"c~d": 1}}) == {"a/b": {"c~d": 1}}


def test_what_is_not_named_is_treated_as_the_rest() -> None:
    assert shown({"otherwise": "length", "arguments": {"a": "dropped"}}, {"a": "x", "b": "yy"}) == {
        "b": "••• (2 characters)"
    }
    assert kept({"otherwise": "dropped", "arguments": {"a": "encrypted"}}, {"a": "x", "b": "yy"}) == {"a": "x"}


def test_dropped_places_of_a_list_leave_a_null() -> None:
    assert kept({"arguments": {"/list/0": "dropped"}}, {"list": ["a", "b"]}) == {"list": [None, "b"]}


def test_what_is_too_large_to_be_shown_is_said_to_be() -> None:
    assert "too large" in str(shown({"arguments": {"a": "clear"}}, {"a": "x" * 20_000}))


def test_deep_arguments_are_masked_without_going_all_the_way() -> None:
    deep: Any = "x"
    for _ in range(240):
        deep = [deep]
    assert "•••" in str(shown({"arguments": {"a": "last4"}}, {"a": deep}))


def test_the_tool_wins_over_its_source_and_both_over_the_site(settings: Any) -> None:
    settings.RECORDED_ARGUMENTS, settings.RECORDED_RESULTS_KB = "dropped", 4
    policy = effective({"arguments": {"a": "clear"}}, {"arguments": {"a": "last4", "b": "last4"}, "results_kb": 8})
    assert (policy.arguments, policy.otherwise, policy.results_kb) == ({"a": "clear", "b": "last4"}, "dropped", 8)
    assert effective(None, None).results_kb == 4
    assert compiled(effective(None), KEY) is not None


def test_a_subject_is_the_keyed_hash_of_a_value() -> None:
    policy = {"subject": {"argument": "/customer/id", "kind": "customer"}}
    facts = make(policy).told({"customer": {"id": 42}})
    assert facts["subject"] == Subject("customer", subject_hash(KEY, "customer", "42"))
    assert make(policy).told({"customer": {"id": "42"}})["subject"] == facts["subject"]
    assert "42" not in str(facts["subject"].value)
    assert subject_hash(b"other" * 8, "customer", "42") != facts["subject"].value
    assert "subject" not in make(policy).told({"customer": {"id": None}})
    assert "subject" not in make(policy).told({"customer": [1]})


def test_results_are_kept_up_to_so_many_bytes() -> None:
    assert make({"results_kb": 2}).told({})["keeps_result"] == 2048


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"arguments": {"a": "shown"}}, "arguments.a"),
        ({"argument": {}}, "argument: Extra inputs"),
        ({"results_kb": 1000}, "results_kb"),
        ({"results_kb": "4"}, "results_kb"),
        ({"subject": {"argument": "a", "kind": "Two Words"}}, "subject.kind"),
        ({"subject": {"argument": "a", "kind": "user"}}, "the ledger's own words"),
        ({"arguments": {"/a" * 20: "clear"}}, "pointer is too long"),
        ([], "valid dictionary"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_place(policy: Any, said: str) -> None:
    with pytest.raises(PolicyRefused) as error:
        checked(policy)
    assert said in str(error.value)


def test_what_is_stored_is_what_was_said() -> None:
    assert checked(None) == {}
    assert checked({"arguments": {"a": "clear"}, "otherwise": None}) == {"arguments": {"a": "clear"}}
    assert set(TREATMENTS) == {"clear", "last4", "domain", "length", "encrypted", "dropped"}
