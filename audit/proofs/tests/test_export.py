"""What the site exports is verified by the program that stands alone, and what was changed on the way is named."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import zipfile
from datetime import timedelta

import pytest
from django.db import connection

from audit import verify
from audit.export.lines import pages
from audit.export.targets import Folder
from audit.export.writing import write_export
from audit.models import Record
from audit.proofs.tests.conftest import make_record
from audit.verify import Options, main, verify_export
from bench.small_sealer import Signer, store


@pytest.fixture
def form():
    return "jsonl"


@pytest.fixture
def export(evidence, tmp_path, form):
    """An export of the first forty leaves, which are all there are, signed by a later key; its folder."""
    made = [make_record(tool=f"tool_{number}", actor="dora", detail='{"message": "é"}') for number in range(40)]
    evidence.leaves((each.pk, each.at, bytes(each.leaf)) for each in made)
    evidence.head(made[-1].at)
    evidence.head(made[-1].at, successor=Signer())
    evidence.head(made[-1].at)
    with connection.cursor() as cursor:
        store(cursor, evidence.rows)
    folder = tmp_path / "export"
    rows = Record.objects.filter(pk__in=[each.pk for each in made])
    keys = [vkey for vkey, _ in evidence.rows["audit_key"]]

    def sign(content, purpose):
        return evidence.signer.manifest(purpose, content)

    write_export(Folder(folder), pages(rows), form=form, scope="all", by="dora", keys=keys, sign=sign)
    return folder


def verdict(folder, sealer, **options):
    return verify_export(str(folder), Options(keys=(str(sealer.signer.key),), **options))


def rewrite(folder, change, sealer=None):
    """Change the lines of the records; with a sealer, let it sign a manifest that fits."""
    path = folder / "records-00001.jsonl.gz"
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))
    if sealer is not None:
        sign_anew(folder, sealer.signer, len(lines))


def sign_anew(folder, signer, records):
    """A manifest of the files as they are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        content = (folder / entry["name"]).read_bytes()
        entry.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        if entry["name"].startswith("records-"):
            entry.update(records=records)
    raw = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(raw)
    (folder / "manifest.sig").write_text(signer.manifest("export", raw))


def test_an_export_that_nobody_touched_is_whole(export, evidence, tmp_path):
    report = verdict(export, evidence)
    assert (report.verdict, report.facts["records"]) == ("OK", 40), str(report)
    assert "The roots of 3 heads follow from the records." in report.notes
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "export")
    assert verdict(archive, evidence, jobs=2).verdict == "OK"


@pytest.mark.parametrize("form", ["csv"])
def test_a_table_for_reading_is_what_was_signed_or_not(export, evidence):
    report = verdict(export, evidence)
    assert (report.verdict, "their leaves cannot be recomputed" in str(report)) == ("OK", True), str(report)
    table = export / "records-00001.csv"
    table.write_bytes(table.read_bytes().replace(b"tool_7", b"tool_8"))
    assert [(each.verdict, each.place) for each in verdict(export, evidence).findings] == [
        ("MODIFIED", {"file": table.name})
    ]


def test_a_changed_file_is_not_the_one_of_the_manifest(export, evidence):
    rewrite(export, lambda lines: lines[3]["record"].update(actor="mallory"))
    report = verdict(export, evidence)
    assert [(each.verdict, each.place) for each in report.findings] == [
        ("MODIFIED", {"file": "records-00001.jsonl.gz"})
    ] or report.verdict in ("MODIFIED", "MISSING")
    assert "not the one that the manifest names" in str(report)


def test_a_changed_record_is_named_even_if_the_manifest_was_signed_for_it(export, evidence):
    rewrite(export, lambda lines: lines[3]["record"].update(actor="mallory"), evidence)
    found = verdict(export, evidence).findings
    assert [(each.verdict, each.place["seq"], each.place["line"]) for each in found] == [("MODIFIED", 3, 4)]


def test_a_record_that_was_taken_out_is_missed(export, evidence):
    rewrite(export, lambda lines: lines.pop(7), evidence)
    assert [(each.verdict, each.place["seq"]) for each in verdict(export, evidence).findings] == [("MISSING", 7)]


def test_records_in_each_others_places_do_not_make_the_root(export, evidence):
    def swap(lines):
        lines[3]["seq"], lines[4]["seq"] = lines[4]["seq"], lines[3]["seq"]

    rewrite(export, swap, evidence)
    report = verdict(export, evidence)
    assert report.verdict == "MODIFIED"
    assert "not those that the head was signed over" in str(report)


def test_a_manifest_of_somebody_else_is_refused_though_the_key_was_put_beside_the_others(export, evidence):
    stranger = Signer()
    with (export / "keys.txt").open("a") as keys:
        keys.write(f"{stranger.key}\n")
    sign_anew(export, stranger, 40)
    report = verdict(export, evidence)
    assert [(each.verdict, each.place) for each in report.findings] == [("MODIFIED", {"file": "manifest.json"})]
    assert "not signed by a key of this ledger" in str(report)


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (lambda line: line.replace(b'"actor":', b'"actor": "ada", "actor":'), "says a name twice"),
        (lambda line: line.replace(b'"actor":', b'"approved_by": "ada", "actor":'), "approved_by"),
        (lambda line: line.replace(b'"seq":3', b'"seq":true'), "True is no whole number"),
        (lambda line: line.replace(b'"seq":3', b'"seq":NaN'), "NaN is no number"),
        (lambda line: line.replace(b'"seq":3', b'"seq":1e999'), "inf is no whole number"),
        (lambda line: b"[" * 20_000, "nested too deeply"),
        (lambda line: b'"\\ud800"', "no record"),
        (lambda line: b"\xff\xfe", "no record"),
        (lambda line: b"1" * 5_000, "no record"),
        (lambda line: b" " * 40_000 + line, "longer than"),
        (lambda line: line + b"\n" + line, "more than 40 records"),
        (lambda line: b"\0", "no record"),
        (None, "cannot be unpacked"),
    ],
)
def test_what_is_made_to_mislead_or_to_fail_is_told(export, evidence, hostile, said, monkeypatch, capsys):
    monkeypatch.setattr(verify, "_LONGEST_LINE", 30_000)
    path = export / "records-00001.jsonl.gz"
    raw = path.read_bytes()
    if hostile is None:
        path.write_bytes(raw[:-20])
    else:
        lines = gzip.decompress(raw).splitlines()
        lines[3] = hostile(lines[3])
        path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    sign_anew(export, evidence.signer, 40)
    assert main(["export", str(export), "--key", str(evidence.signer.key), "--jobs", "1"]) == 1
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(("hours", "wanted"), [(1, "OK"), (-1, "ROLLED_BACK")])
def test_a_witness_went_on_after_the_export_but_not_before_it(export, evidence, tmp_path, hours, wanted):
    evidence.head(evidence.heads[-1].sealed_at + timedelta(hours=hours))
    (tmp_path / "kept").write_text(evidence.rows["audit_head"][-1][-1])
    assert verdict(export, evidence, witness=str(tmp_path / "kept")).verdict == wanted


def test_an_archive_that_holds_a_file_twice_is_told(export, evidence, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "export")
    with zipfile.ZipFile(archive, "a") as opened, pytest.warns(UserWarning, match="Duplicate"):
        opened.writestr("export/heads.jsonl", (export / "heads.jsonl").read_bytes())
    found = verdict(archive, evidence).findings
    assert [(each.verdict, each.place) for each in found] == [("INSERTED", {"file": "export/heads.jsonl"})]


def test_a_file_that_the_manifest_does_not_name_is_told(export, evidence):
    (export / "more.txt").write_text("x")
    assert [(each.verdict, each.place) for each in verdict(export, evidence).findings] == [
        ("INSERTED", {"file": "more.txt"})
    ]


def test_the_exit_code_tells(export, evidence, tmp_path, capsys):
    key = str(evidence.signer.key)
    assert main(["export", str(export), "--key", key]) == 0
    assert capsys.readouterr().out.startswith("OK")
    assert main(["export", str(export), "--key", key.replace("drill", "other")[:20]]) == 2
    assert main(["export", str(tmp_path), "--jobs", "1"]) in (0, 2)
    assert main(["proof", str(tmp_path / "nothing.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    rewrite(export, lambda lines: lines.pop(7))
    assert main(["export", str(export), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "MODIFIED"
