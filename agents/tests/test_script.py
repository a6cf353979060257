"""Scripts: what can stand in them, and what is refused."""

from __future__ import annotations

import pytest

from agents.script import Ask, MissingValue, Say, ScriptError, filled, parse

RESULTS = {"find": {"rows": [{"id": 7, "name": "Åsa", "tags": ["a"]}]}, "say": "plain"}
TASK = "Mail (asa@example.com) about SO-100042, please."


def test_steps_are_calls_and_a_last_word():
    text = '- {call: find, with: {q: "{{ email }}"}, otherwise: Whose.}\n- {call: list}\n- {say: Done.}'
    assert parse(text) == [Ask("find", {"q": "{{ email }}"}, "Whose."), Ask("list"), Say("Done.")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "say: hello",
        "- [unclosed",
        "- say: 1",
        "- {call: x}",
        "- {say: a}\n- {say: b}",
        "- {call: x, with: [1]}\n- {say: a}",
        "- {call: x, wiht: {}}\n- {say: a}",
        "- {call: x, otherwise: 1}\n- {say: a}",
        "- call: x\n  with: &a {b: 1}\n- call: y\n  with: *a\n- say: done",
        "- !!python/object/apply:os.system [id]",
        "\n".join(["- {call: x}"] * 50 + ["- {say: a}"]),
        "- say: \x00",
    ],
)
def test_what_is_no_script_is_refused_with_a_sentence(text):
    with pytest.raises(ScriptError, match=r"^[A-Z].{10,}"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("{{ input }}", TASK),
        ("{{ email }}", "asa@example.com"),
        ("{{word:SO-}}", "SO-100042"),
        ("{{ find.rows.0.id }}", 7),
        ("No. {{ find.rows.0.id }} is {{ find.rows.0.name }}", "No. 7 is Åsa"),
        ("{{ find.rows.0.tags }}!", '["a"]!'),
        ("{{ say }}", "plain"),
        ({"deep": ["{{ find.rows.0.id }}", 1, None]}, {"deep": [7, 1, None]}),
        ("{ not } {{}} one", "{ not } {{}} one"),
    ],
)
def test_values_are_filled_in(value, expected):
    assert filled(value, TASK, RESULTS) == expected


@pytest.mark.parametrize("value", ["{{ find.rows.1.id }}", "{{ find.rows.x }}", "{{ nothing }}", "{{ word:XX }}"])
def test_a_missing_value_is_told(value):
    with pytest.raises(MissingValue, match="There is no"):
        filled(value, TASK, RESULTS)


def test_values_are_not_filled_in_twice():
    """What a tool answered is data, never a template."""
    assert filled("{{ find }}", "secret task", {"find": "{{ input }}"}) == "{{ input }}"
