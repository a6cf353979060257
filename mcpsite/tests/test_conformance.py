import json

import pytest

from bench.conformance.baseline import FILE, differences, load
from bench.conformance.report import table
from bench.conformance.suite import LEGS, Check, read
from bench.conformance.upstream.__main__ import Pinned


def leave(folder, scenario, *verdicts):
    place = folder / f"server-{scenario}-2026-11-23T18-17-11-334Z"
    place.mkdir(parents=True)
    found = [{"id": name, "status": status, "errorMessage": f"{name} {status}"} for name, status in verdicts]
    (place / "checks.json").write_text(json.dumps(found))


def test_a_check_is_as_good_as_its_worst_verdict_and_notes_are_none(tmp_path):
    leave(tmp_path, "tools-list", ("a", "SUCCESS"), ("a", "FAILURE"), ("a", "SUCCESS"), ("b", "SUCCESS"), ("c", "INFO"))
    leave(tmp_path, "ping", ("d", "INFO"))
    found = {(check.scenario, check.name): check.status for check in read(tmp_path)}
    assert found == {("ping", "no-check"): "SKIPPED", ("tools-list", "a"): "FAILURE", ("tools-list", "b"): "SUCCESS"}
    assert "1/2 ✗" in table({"2025-11-25": read(tmp_path)})


def test_what_the_suite_leaves_of_clients_is_read_as_well(tmp_path):
    leave(tmp_path, "tools_call", ("a", "SUCCESS"))
    (place,) = tmp_path.iterdir()
    place.rename(tmp_path / place.name.removeprefix("server-"))
    assert [(check.scenario, check.name) for check in read(tmp_path)] == [("tools_call", "a")]
    assert [leg.name for leg in LEGS.values() if leg.is_of_client] == [
        "client-0.1.16", "client-2025-06-18", "client-2025-11-25", "client-2026-07-28",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "excused", "said"),
    [
        ("SUCCESS", False, None),
        ("SKIPPED", True, None),
        ("SKIPPED", False, "is open"),
        ("WARNING", False, "is open"),
        ("SUCCESS", True, "take it out"),
        (None, True, "was not checked"),
    ],
)
def test_the_baseline_can_only_shrink(status, excused, said):
    known = {"http dual": {"2025-11-25": {"ping": {"a": "why"}}}} if excused else {}
    checks = [] if status is None else [Check("ping", "a", status, "")]
    sentences = list(differences(known, "http dual", "2025-11-25", checks))
    assert [said in sentence for sentence in sentences] == ([] if said is None else [True])


def test_every_open_check_has_a_reason():
    for behind, legs in load().items():
        assert set(legs) <= set(LEGS), behind
        for scenarios in legs.values():
            assert all(reason for reasons in scenarios.values() for reason in reasons.values())
    assert FILE.name == "baseline.json"


@pytest.mark.parametrize(
    ("era", "revision", "passes"),
    [("legacy", "2026-07-28", False), ("legacy", "2025-11-25", True), ("modern", "2025-11-25", False)],
)
async def test_a_pinned_upstream_knows_one_era_only(era, revision, passes):
    passed, answers = [], []

    async def app(scope, receive, send):
        passed.append(scope)

    async def send(event):
        answers.append(event)

    scope = {"type": "http", "headers": [(b"mcp-protocol-version", revision.encode())]}
    await Pinned(app, era)(scope, None, send)
    assert bool(passed) is passes
    assert [answer.get("status") for answer in answers] == ([] if passes else [400, None])
