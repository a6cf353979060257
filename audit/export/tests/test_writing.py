"""An export can be read back, says how complete it is, and is signed as a whole."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
import uuid
import zipfile
from typing import Any

import pytest

from audit.entry import Entry
from audit.export import writing
from audit.export.lines import pages
from audit.export.signing import SealerAway, signature_over
from audit.export.targets import Archive, Folder
from audit.export.tests.sealer import TestSealer, digest_said
from audit.export.writing import write_export
from audit.ledger import record
from audit.models import Record
from audit.verify import check_note, fields_of, leaves_of, parse_note

TOOL = "exported"


@pytest.fixture(autouse=True)
def own_tool(monkeypatch):
    """What is committed stays: each test has records of its own."""
    monkeypatch.setattr(sys.modules[__name__], "TOOL", f"exported_{uuid.uuid4().hex[:8]}")


def make_records(number: int, tool: str = "", **values) -> None:
    for place in range(number):
        record(Entry(**{"kind": "call", "code": "ok", "tool": f"{TOOL}{tool}", "detail": f'{{"n":{place}}}', **values}))


def exported(target, sealer: TestSealer, **options):
    rows = Record.objects.filter(tool=f"{TOOL}{options.pop('tool', '')}")
    found = pages(rows, size=options.pop("size", 1000))
    wanted = {"scope": "the tool exported", "by": "dora", "keys": [str(sealer.key)], "sign": sealer.sign, **options}
    return write_export(target, found, **wanted)


def lines_of(folder) -> list[dict[str, Any]]:
    parts = sorted(folder.glob("records-*.jsonl.gz"))
    return [json.loads(line) for part in parts for line in gzip.decompress(part.read_bytes()).splitlines()]


def test_every_record_is_there_and_its_leaf_can_be_recomputed(still_sealer, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "_RECORDS_A_PART", {"jsonl": 3})
    sealer = still_sealer
    make_records(7, actor="Zoë", definition=b"\x01" * 32, total_us=5, arguments=b"{}")
    head = sealer.seal()
    exported(Folder(tmp_path / "out"), sealer, size=3)
    found = lines_of(tmp_path / "out")
    assert [json.loads(each["record"]["detail"])["n"] for each in found] == list(range(7))
    assert all(each["leaf"] in {leaf.hex() for leaf in leaves_of(fields_of(each["record"]))} for each in found)
    assert [each["seq"] for each in found] == list(range(head.size - 7, head.size))
    assert len(list((tmp_path / "out").glob("records-*"))) == 3


def test_the_manifest_lists_every_file_and_is_signed(still_sealer, tmp_path):
    sealer, out = still_sealer, tmp_path / "out"
    make_records(2)
    head = sealer.seal()
    written = exported(Folder(out), sealer)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert {each.name for each in out.iterdir()} - {"manifest.json", "manifest.sig"} == {
        each["name"] for each in manifest["files"]
    }
    for each in manifest["files"]:
        content = (out / each["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (each["bytes"], each["sha256"])
    assert manifest["complete"]
    assert (manifest["first_seq"], manifest["last_seq"]) == (head.size - 2, head.size - 1)
    assert (manifest["origin"], manifest["by"], manifest["records"]) == (head.origin, "dora", 2)
    note = (out / "manifest.sig").read_text()
    assert check_note(parse_note(note), (out / "keys.txt").read_text().split()) == [str(sealer.key)]
    assert digest_said(note) == written.digest == hashlib.sha256((out / "manifest.json").read_bytes()).digest()
    heads = [json.loads(line) for line in (out / "heads.jsonl").read_text().splitlines()]
    assert heads[-1]["number"] == head.number


def test_what_lacks_a_record_or_is_not_sealed_is_not_called_complete(still_sealer, tmp_path):
    sealer = still_sealer
    make_records(1)
    make_records(1, tool="between")
    make_records(1)
    make_records(1, tool="whole")
    sealer.seal()
    make_records(1, tool="whole")
    for tool in ("", "whole"):
        out = tmp_path / f"out{tool}"
        written = exported(Folder(out), sealer, tool=tool)
        assert not written.counted.complete
        assert "first_seq" not in json.loads((out / "manifest.json").read_bytes())
    assert lines_of(tmp_path / "outwhole")[-1]["seq"] is None


def test_an_export_of_nothing_is_an_export(still_sealer, tmp_path):
    sealer = still_sealer
    sealer.seal()
    exported(Folder(tmp_path / "out"), sealer, tool="no such tool")
    assert lines_of(tmp_path / "out") == []


def test_the_archive_holds_the_same_and_the_same_records_make_the_same_bytes(still_sealer, tmp_path):
    sealer = still_sealer
    make_records(3)
    sealer.seal()
    exported(Folder(tmp_path / "out"), sealer)
    stream = io.BytesIO()
    with Archive(stream) as archive:
        exported(archive, sealer)
    with zipfile.ZipFile(stream) as found:
        assert found.testzip() is None
        assert sorted(found.namelist()) == sorted(each.name for each in (tmp_path / "out").iterdir())
        for name in ("records-00001.jsonl.gz", "heads.jsonl", "keys.txt"):
            assert found.read(name) == (tmp_path / "out" / name).read_bytes()


def test_a_torn_archive_does_not_look_like_a_whole_one():
    stream = io.BytesIO()

    def tear() -> None:
        with Archive(stream) as archive, archive.file("one") as file:
            file.write(b"x")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        tear()
    assert not zipfile.is_zipfile(stream)


def test_csv_has_a_row_for_each_record_and_no_formula(still_sealer, tmp_path):
    sealer = still_sealer
    make_records(2, actor="=cmd|' /C calc'!A0", detail='a";=1')
    sealer.seal()
    exported(Folder(tmp_path / "out"), sealer, form="csv")
    raw = (tmp_path / "out" / "records-00001.csv").read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    assert len(rows) == 2
    assert rows[0]["actor"] == "'=cmd|' /C calc'!A0"
    assert rows[0]["detail"] == "a\";'=1"
    assert rows[0]["at"].endswith("Z")


def test_files_are_for_their_owner_only_and_never_overwritten(tmp_path):
    folder = Folder(tmp_path / "out")
    with folder.file("one") as stream:
        stream.write(b"1")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "out" / "one").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError), folder.file("one"):
        pass


def test_the_sealer_signs_what_it_is_asked_to(sealer):
    note = signature_over(b"manifest", "export")
    assert digest_said(note) == hashlib.sha256(b"manifest").digest()
    assert check_note(parse_note(note), [str(sealer.key)])


def test_without_a_sealer_it_says_so(committed_db):
    with pytest.raises(SealerAway, match="Is it running"):
        signature_over(b"nobody answers", "export", seconds=0.1)
