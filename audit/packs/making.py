"""Makes an evidence pack: an export with all that an auditor asks around it, under one signed manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import QuerySet

from audit.export.lines import pages
from audit.export.models import Export
from audit.export.signing import signature_over
from audit.export.targets import Target
from audit.export.working import Telling
from audit.export.writing import Counted, Files, write_export
from audit.models import Record
from audit.packs import tables
from audit.packs.access import METHOD, access_as_of
from audit.packs.controls import CONTROLS, NOTE
from audit.packs.page import Sample, index_page
from audit.packs.population import COLUMNS, population_of
from audit.packs.sampling import STRATA, samples_of
from audit.packs.scope import ALL, PackScope, scope_of
from audit.packs.stories import story_of
from audit.packs.verdict import verdict_of
from audit.proofs.documents import keys

PURPOSE = "evidence-pack"
_VERIFIER = Path(__file__).resolve().parents[1] / "verify.py"
_ACCESS = ("user", "program", "role", "tool", "source", "effect", "grant", "per_minute", "kind")
_README = """An evidence pack of the ledger at {origin}.

Open index.html in a browser: it needs no network. To verify the pack without the site that made it:

    pip install cryptography
    python verify.py export .
    python verify.py proof samples/0001.proof.json

verify.py is in the pack for convenience: take it, and the keys in keys.txt, from a source that you trust besides.
"""


def write_pack(
    export: Export, target: Target, telling: Telling, sign: Callable[[bytes, str], str] = signature_over
) -> tuple[int, bytes]:
    """The content of the pack; how many records are in it, and the manifest's SHA-256."""
    scope = scope_of(export.scope)
    samples = list(_samples(scope, telling))
    chosen = _chosen(scope, samples)

    def further(files: Files, counted: Counted, origin: str) -> None:
        _write_rest(files, counted, export, scope, samples, telling, origin)

    telling.say(stage="Reading records")
    written = write_export(
        target,
        pages(chosen),
        scope=scope.told(),
        by=export.asked_by,
        purpose=PURPOSE,
        keys=keys(),
        tell=telling.records,
        sign=sign,
        created_at=export.asked_at,
        further=further,
    )
    return written.counted.records, written.digest


def _samples(scope: PackScope, telling: Telling) -> Iterator[tuple[str, Record]]:
    telling.say(stage="Choosing samples")
    for stratum, records in samples_of(scope):
        yield from ((stratum.name, record) for record in records)


def _chosen(scope: PackScope, samples: Sequence[tuple[str, Record]]) -> QuerySet[Record]:
    if scope.records == ALL:
        return scope.chosen()
    return scope.rows().filter(pk__in=[record.pk for _, record in samples])


def _write_rest(
    files: Files,
    counted: Counted,
    export: Export,
    scope: PackScope,
    samples: Sequence[tuple[str, Record]],
    telling: Telling,
    origin: str,
) -> None:
    telling.say(stage="Counting the population", records=counted.records)
    population = population_of(scope)
    tables.write_csv(files, "population.csv", COLUMNS, population.rows)
    refused = list(tables.refusals(scope))
    tables.write_csv(files, "refusals.csv", tables.REFUSALS, refused)
    tables.write_csv(files, "policies.csv", tables.POLICIES, tables.policies(population.policies))
    changed = tables.write_csv(files, "changes.csv", tables.CHANGES, tables.changes(scope))
    keys = list(tables.keys(scope))
    tables.write_csv(files, "keys.csv", tables.KEYS, keys)
    tables.write_csv(files, "events.csv", tables.EVENTS, tables.events(scope))
    retention = tables.retention()
    files.add("retention.json", _json(retention))
    telling.say(stage="Rebuilding who could call what")
    access = access_as_of(scope.as_of)
    _write_access(files, access, scope)
    telling.say(stage="Proving the samples")
    told = [_write_sample(files, number, *sample) for number, sample in enumerate(samples, 1)]
    files.add("sampling.json", _json(_sampling(scope, told)))
    telling.say(stage="Verifying the ledger")
    verdict = verdict_of(scope)
    files.add("verdict.json", _json(verdict))
    files.add("controls.json", _json({"note": NOTE, "controls": [asdict(each) for each in CONTROLS]}))
    files.add("verify.py", _VERIFIER.read_bytes())
    files.add("README.txt", _README.format(origin=origin).encode())
    page = index_page(
        export=export,
        scope=scope,
        origin=origin,
        counted=counted,
        population=population,
        refused=refused,
        changed=changed,
        keys=keys,
        retention=retention,
        access=access,
        samples=told,
        verdict=verdict,
        version=settings.VERSION,
    )
    files.add("index.html", page.encode())
    telling.say(stage="Waiting for the signature")


def _write_access(files: Files, access: Any, scope: PackScope) -> None:
    rows = (tuple(getattr(each, name) for name in _ACCESS) for each in access.reaches)
    tables.write_csv(files, "access/access.csv", _ACCESS, rows)
    said = {
        "as_of": scope.as_of.isoformat(),
        "method": METHOD,
        "changes_undone": access.undone,
        "misfits": access.misfits,
        "objects": access.objects,
    }
    files.add("access/access.json", _json(said))


def _write_sample(files: Files, number: int, stratum: str, record: Record) -> Sample:
    story = story_of(record, stratum, number)
    name = f"samples/{number:04}"
    proof = story.pop("proof")
    files.add(f"{name}.json", _json(story))
    if proof is not None:
        files.add(f"{name}.proof.json", _json(proof))
    return Sample(number, stratum, story["headline"], record, name, proof is not None)


def _sampling(scope: PackScope, samples: Sequence[Sample]) -> dict[str, Any]:
    return {
        "seed": scope.seed,
        "algorithm": "Of each stratum, the records with the smallest SHA-256(seed as UTF-8 || the 16 bytes of rid).",
        "of_each": scope.samples,
        "strata": [
            {
                "name": stratum.name,
                "title": stratum.title,
                "samples": [str(each.record.rid) for each in samples if each.stratum == stratum.name],
            }
            for stratum in STRATA
        ],
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str, sort_keys=False).encode() + b"\n"
