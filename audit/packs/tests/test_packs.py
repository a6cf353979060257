"""An evidence pack: complete, provable offline, honest, safe to open, and the same when it is made again."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
import uuid
import zipfile
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from access.models import Grant, Role, User
from audit.changes import record_change, stored
from audit.entry import Entry
from audit.export.asking import ask_for_export
from audit.export.models import EvidencePack, Export
from audit.export.scope import BadScope
from audit.export.tasks import made as maker
from audit.export.tests.conftest import archive_of, make_user
from audit.export.tests.conftest import sealer as sealer
from audit.export.working import carry_out
from audit.ledger import record
from audit.models import Record
from audit.packs.access import access_as_of
from audit.packs.controls import CONTROLS, NOTE
from audit.packs.sampling import rank, samples_of
from audit.packs.scope import read, scope_of
from tools.models import DataSource, Prompt, Resource, Tool, Toolset, ToolVersion

HOSTILE = '<script>alert(1)</script>"=cmd'
FILES = {
    "index.html", "README.txt", "verify.py", "keys.txt", "heads.jsonl", "manifest.json", "manifest.sig",
    "population.csv", "refusals.csv", "policies.csv", "changes.csv", "keys.csv", "retention.json", "controls.json",
    "sampling.json", "verdict.json", "events.csv", "access/access.csv", "access/access.json", "records-00001.jsonl.gz",
}  # fmt: skip


def make_call(tool: str, **values: Any) -> uuid.UUID:
    known = {
        "kind": "call",
        "code": "ok",
        "decision": "allow",
        "connector": "packed",
        "policy_version": 3,
        "actor": "dora",
    }
    return record(Entry(**{**known, "tool": tool, "arguments": b"{}", **values}))


def packed(tmp: Path, **given: Any) -> tuple[Export, Path]:
    """A pack of the last hour, made and unpacked."""
    scope = read(
        {"since": (timezone.now() - timedelta(hours=1)).isoformat(), "sources": "packed", "seed": "s1", **given}
    )
    user = User.objects.filter(username="auditor").first() or make_user("auditor")
    export = ask_for_export(Export.Form.PACK, scope, user=user, door="admin")
    carry_out(export.pk, maker, lambda: False)
    export.refresh_from_db()
    assert export.state == "done", export.problem
    place = tmp / str(export.pk)
    archive_of(export).extractall(place)
    return export, place


def verify(place: Path, *words: str) -> dict[str, Any]:
    """What the verifier of the pack says, in a process that knows nothing of the site."""
    done = subprocess.run(
        [sys.executable, "-I", "verify.py", *words, "--json"],
        cwd=place, capture_output=True, text=True, timeout=120, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rows_of(place: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((place / name).read_bytes().decode(), newline="")))


def test_a_pack_is_complete_and_verifies_offline(sealer, tmp_path):
    wanted = make_call("find")
    make_call("find", kind="denied", code="not_granted", decision="deny")
    export, place = packed(tmp_path)
    names = {str(each.relative_to(place)) for each in place.rglob("*") if each.is_file()}
    assert names >= FILES
    report = verify(place, "export", ".")
    assert report["verdict"] == "OK", report
    sampling = json.loads((place / "sampling.json").read_text())
    chosen = {each["name"]: each["samples"] for each in sampling["strata"]}
    assert str(wanted) in chosen["reads"]
    proofs = sorted(place.glob("samples/*.proof.json"))
    assert len(proofs) == sum(map(len, chosen.values())) >= 2
    assert verify(place, "proof", str(proofs[0]))["verdict"] == "OK"
    assert EvidencePack.objects.get().pk == export.pk


def test_the_control_map_names_files_that_there_are_and_promises_nothing():
    for control in CONTROLS:
        assert set(control.files) <= FILES | {"samples/"}, control.question
        assert control.limit
    assert not re.search("satisf|compl(y|iant)|mandatory", str(CONTROLS) + NOTE)


def test_what_is_changed_in_a_pack_is_found(sealer, tmp_path):
    make_call("find")
    _, place = packed(tmp_path)
    page = place / "index.html"
    page.write_text(page.read_text().replace("Evidence pack", "Evidence park", 1))
    assert verify(place, "export", ".")["verdict"] == "MODIFIED"


def test_the_population_is_counted_in_scope(sealer, tmp_path):
    for _ in range(3):
        make_call("counted", connector="counted")
    make_call("other", connector="elsewhere")
    _, place = packed(tmp_path, sources="counted")
    calls = [row for row in rows_of(place, "population.csv") if row["tool"]]
    assert [(row["tool"], row["kind"], row["records"]) for row in calls] == [("counted", "call", "3")]
    refused = make_call("counted", connector="counted", kind="denied", code="not_granted", decision="deny", roles="a,b")
    _, place = packed(tmp_path, sources="counted", roles="b", records="all")
    assert [row["code"] for row in rows_of(place, "refusals.csv")] == ["not_granted"]
    assert str(refused) in json.loads((place / "sampling.json").read_text())["strata"][2]["samples"]


@pytest.mark.django_db
def test_samples_follow_from_the_seed_alone():
    made = [make_call("sampled", connector="sampled") for _ in range(30)]
    given = {"since": (timezone.now() - timedelta(hours=1)).isoformat(), "sources": "sampled", "samples": 5}

    def chosen(seed: str) -> list[uuid.UUID]:
        scope = scope_of(read({**given, "seed": seed}))
        return [
            record.rid for record in next(records for stratum, records in samples_of(scope) if stratum.name == "reads")
        ]

    assert chosen("a") == sorted(made, key=lambda rid: rank("a", rid))[:5]
    assert chosen("a") == chosen("a") != chosen("b")


class Page(HTMLParser):
    """What a page would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href") and value]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_is_safe_and_needs_no_network(sealer, tmp_path):
    make_call(HOSTILE, actor=HOSTILE, kind="denied", code="unknown_tool", decision="deny")
    _, place = packed(tmp_path)
    text = (place / "index.html").read_text()
    page = Page()
    page.feed(text)
    assert "&lt;script&gt;alert(1)" in text
    assert not {"script", "iframe", "img", "link", "object", "form"} & set(page.tags)
    assert not page.handlers
    for link in page.links:
        assert link.startswith("#") or (place / link).is_file(), link
    assert "default-src" in text
    assert rows_of(place, "refusals.csv")[0]["tool"] == "<script>alert(1)</script>\"'=cmd"


def test_the_same_ledger_makes_the_same_files(sealer, tmp_path):
    make_call("again", connector="again")
    fixed = {"until": timezone.now().isoformat(), "since": (timezone.now() - timedelta(hours=1)).isoformat()}
    first, one = packed(tmp_path, sources="again", **fixed)
    second, two = packed(tmp_path, sources="again", **fixed)
    assert first.pk != second.pk
    for name in FILES - {"manifest.json", "manifest.sig", "index.html", "verdict.json", "heads.jsonl", "events.csv"}:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert [each.name for each in sorted(one.glob("samples/*"))] == [
        each.name for each in sorted(two.glob("samples/*"))
    ]


# --- Access as of a date ---------------------------------------------------------------------------------------------


def make_company() -> tuple[User, Role, Tool, Grant]:
    source = DataSource.objects.create(name="desk", kind="sql")
    tool = Tool.objects.create(source=source, name="find_customer", effect="read")
    tool.current = ToolVersion.objects.create(tool=tool, number=1, definition="{}", fingerprint="0" * 64)
    tool.save()
    role = Role.objects.create(name="support")
    user = User.objects.create_user("dora")
    user.groups.add(role)
    return user, role, tool, Grant.objects.create(role=role, tool=tool, calls_per_minute=7)


def change(obj: Any, apply: Any) -> None:
    """Change it as admin and REST do, with a record."""
    before = stored(obj)
    apply()
    record_change(action="update", obj=obj, before=before, after=stored(obj), door="admin")


def reached(at: Any) -> set[tuple[str, str, str]]:
    return {(each.user, each.role, each.tool) for each in access_as_of(at).reaches}


@pytest.mark.django_db
def test_access_is_what_it_was_before_each_change():
    user, role, tool, grant = make_company()
    everything = {("dora", "support", "find_customer")}
    assert reached(timezone.now()) == everything
    moments = []

    def now() -> Any:
        # Records of one transaction differ by their own clock.
        moments.append(timezone.now())
        return moments[-1]

    before_leaving = now()
    change(user, lambda: user.groups.clear())
    after_leaving = now()
    change(user, lambda: user.groups.add(role))
    before_renaming = now()
    change(role, lambda: Role.objects.filter(pk=role.pk).update(name="helpers"))
    before_switching = now()
    change(tool, lambda: Tool.objects.filter(pk=tool.pk).update(enabled=False))
    before_deleting = now()
    key, was = grant.pk, stored(grant)
    record_change(action="delete", obj=grant, before=was, after={}, door="admin", pk=key)
    grant.delete()
    at_last = now()
    assert reached(before_leaving) == everything
    assert reached(after_leaving) == set()
    assert reached(before_renaming) == everything
    assert reached(before_switching) == {("dora", "helpers", "find_customer")}
    assert reached(before_deleting) == set()
    assert reached(at_last) == set()
    found = access_as_of(before_leaving)
    assert (found.undone, found.misfits) == (5, [])
    assert found.reaches[0].per_minute == 7


@pytest.mark.django_db
def test_a_change_without_a_record_is_noticed():
    user, _, tool, _ = make_company()
    before = timezone.now()
    change(tool, lambda: Tool.objects.filter(pk=tool.pk).update(enabled=False))
    Tool.objects.filter(pk=tool.pk).update(enabled=True)
    assert any("enabled" in each for each in access_as_of(before).misfits)
    change(user, lambda: User.objects.filter(pk=user.pk).update(first_name="Dora"))
    user.delete()
    assert any("not there" in each for each in access_as_of(before).misfits)


@pytest.mark.django_db
def test_toolsets_and_tags_lead_to_tools_and_who_is_inactive_to_none():
    user, role, tool, grant = make_company()
    grant.delete()
    toolset = Toolset.objects.create(name="desk")
    toolset.tools.add(tool)
    Grant.objects.create(role=role, toolset=toolset)
    assert [each.grant for each in access_as_of(timezone.now()).reaches] == ["toolset desk"]
    Tool.objects.filter(pk=tool.pk).update(tags=["care"])
    Grant.objects.create(role=role, tag="care")
    assert [each.grant for each in access_as_of(timezone.now()).reaches] == ["tag care", "toolset desk"]
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert access_as_of(timezone.now()).reaches == []


@pytest.mark.django_db
def test_prompts_and_resources_are_reached_by_toolsets_and_tags():
    _, role, tool, grant = make_company()
    of = {"source": tool.source, "definition": "{}", "fingerprint": "0" * 64}
    prompt = Prompt.objects.create(name="welcome", source_name="welcome", **of)
    hours, any_page = (
        Resource.objects.create(uri=uri, is_template="{" in uri, **of) for uri in ("desk://hours", "desk://{page}")
    )
    toolset = Toolset.objects.create(name="desk")
    toolset.prompts.add(prompt)
    toolset.resources.add(hours)
    grant.delete()
    Grant.objects.create(role=role, toolset=toolset)
    Grant.objects.create(role=role, tag="care")
    Resource.objects.filter(pk=any_page.pk).update(tags=["care"])
    before = timezone.now()
    change(hours, lambda: Resource.objects.filter(pk=hours.pk).update(enabled=False))
    change(toolset, lambda: toolset.prompts.clear())
    Resource.objects.filter(pk=any_page.pk).update(missing=True)

    def used(at: Any) -> list[tuple[str, str, str, str]]:
        return [(each.kind, each.tool, each.grant, each.effect) for each in access_as_of(at).reaches]

    assert used(timezone.now()) == []
    Resource.objects.filter(pk=any_page.pk).update(missing=False)
    assert used(before) == [
        ("resource", "desk://hours", "toolset desk", "read"),
        ("template", "desk://{page}", "tag care", "read"),
        ("prompt", "welcome", "toolset desk", "read"),
    ]
    assert "definition" not in next(iter(access_as_of(before).objects["tools.Prompt"].values()))


# --- Scope and doors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "since"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "until"),
        ({"since": "2126-01-02T00:00:00Z"}, "until"),
        ({"since": "2026-01-01", "samples": "0"}, "samples"),
        ({"since": "2026-01-01", "samples": "9999"}, "samples"),
        ({"since": "2026-01-01", "seed": "a b"}, "seed"),
        ({"since": "2026-01-01", "records": "some"}, "records"),
        ({"since": "2026-01-01", "tool": "x"}, "tool"),
        ({"since": "soon"}, "since"),
    ],
)
def test_what_cannot_be_read_is_refused(given, name):
    with pytest.raises(BadScope) as refused:
        read(given)
    assert refused.value.name == name


def test_without_a_seed_there_is_a_random_one():
    given = {"since": "2026-01-01T00:00:00Z"}
    assert read(given)["seed"] != read(given)["seed"]
    assert read({**given, "tools": "b, a,b,"})["tools"] == ["a", "b"]


@pytest.mark.django_db
def test_a_pack_is_asked_for_in_the_admin():
    client = Client()
    client.force_login(make_user("dora", "view_record", "view_evidencepack", "add_evidencepack"))
    form = client.get("/admin/audit/evidencepack/add/")
    assert form.status_code == 200
    sent = {"since": "2026-01-01T00:00", "samples": "5", "records": "samples", "tools": "a, b"}
    answer = client.post("/admin/audit/evidencepack/add/", sent)
    pack = EvidencePack.objects.get()
    assert answer["Location"] == f"/admin/audit/evidencepack/{pack.pk}/change/"
    assert (pack.scope["tools"], pack.scope["samples"], len(pack.scope["seed"])) == (["a", "b"], 5, 16)
    page = client.get(answer["Location"]).content
    assert pack.scope["seed"].encode() in page
    assert client.get("/admin/audit/evidencepack/").status_code == 200
    assert client.post("/admin/audit/evidencepack/add/", {**sent, "seed": "no good"}).status_code == 400
    detail = json.loads(Record.objects.filter(code="export_requested").latest("id").detail)
    assert detail["scope"]["seed"] == pack.scope["seed"]
    # Exports and packs are two lists.
    assert client.get(f"/admin/audit/export/{pack.pk}/change/").status_code in (302, 403)


@pytest.mark.django_db
def test_a_pack_is_asked_for_by_rest():
    from audit.export.tests.test_api import client_of

    url = "/api/v1/audit/evidence-packs/"
    client = client_of(make_user("dora", "view_record", "view_evidencepack", "add_evidencepack"))
    answer = client.post(url, {"since": "2026-01-01T00:00:00Z", "tools": ["a"], "seed": "x"})
    assert answer.status_code == 202, answer.content
    assert client.get(answer["Location"]).json()["scope"]["tools"] == ["a"]
    assert client.post(url, {"since": "2026-01-01T00:00:00Z", "tol": 1}).status_code == 400
    assert client.post(url, {"since": "2126-01-01T00:00:00Z"}).json()["errors"].keys() == {"until"}
    assert client_of(make_user("emil", "view_record")).post(url, {"since": "2026-01-01T00:00:00Z"}).status_code == 403


def test_the_command_writes_a_pack_or_no_file(sealer, tmp_path, monkeypatch):
    make_call("commanded")
    file = tmp_path / "pack.zip"
    call_command("evidence_pack", file, since=(timezone.now() - timedelta(hours=1)).isoformat())
    assert file.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(file) as found:
        assert set(found.namelist()) >= FILES
    with pytest.raises(CommandError, match="exists"):
        call_command("evidence_pack", file, since="2026-01-01T00:00:00Z")
    with pytest.raises(CommandError, match="period"):
        call_command("evidence_pack", tmp_path / "other.zip", since="2126-01-01T00:00:00Z")
    assert not (tmp_path / "other.zip").exists()
