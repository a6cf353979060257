"""Brings the prompts and resources of a data source up to date with what it offers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import orjson

from tools import exact
from tools.connectors.base import Kind, Offer
from tools.definitions import DefinitionRefused, named
from tools.models import DataSource, Offered, Prompt, Resource
from tools.names import free_name
from tools.outcome import SyncOutcome, printable
from tools.templates import is_uri, pattern_of, shape_of

_LARGEST = 256 * 1024
_LONGEST_SOURCE_NAME, _LONGEST_REASON = 128, 1_000

T = TypeVar("T", bound=Offered)


def take_prompts(row: DataSource, offers: Iterable[Offer], outcome: SyncOutcome) -> None:
    """The prompts, under names with the prefix of the source."""
    known = {prompt.source_name: prompt for prompt in row.prompts.all()}
    _take(list(offers), known, lambda offer: _prompt(row, offer, known.get(offer.name)), outcome)


def take_resources(row: DataSource, offers: Iterable[Offer], outcome: SyncOutcome) -> None:
    """The resources and templates, by their URIs, which are never changed: results speak of them."""
    known = {resource.uri: resource for resource in row.resources.all()}
    _take(list(offers), known, lambda offer: _resource(row, offer, known.get(offer.name)), outcome)


def _take(offers: list[Offer], known: dict[str, T], make: Callable[[Offer], T], outcome: SyncOutcome) -> None:
    times = Counter(offer.name for offer in offers)
    for offer in offers:
        label = f"{offer.kind} {printable(offer.name)}"
        try:
            if times[offer.name] > 1:
                raise DefinitionRefused(f"The source offers {times[offer.name]} of this name.")
            became = _save(make(offer), offer)
        except ValueError as error:
            outcome.refused[label] = printable(str(error), _LONGEST_REASON)
            continue
        getattr(outcome, became).append(label)
    for name, row in known.items():
        if name not in times and not row.missing:
            row.missing = True
            row.save(update_fields=["missing", "updated_at"])
            outcome.missing.append(f"{_kind_of(row)} {printable(name)}")


def _kind_of(row: Offered) -> Kind:
    if isinstance(row, Resource):
        return "template" if row.is_template else "resource"
    return "prompt"


def _prompt(row: DataSource, offer: Offer, known: Prompt | None) -> Prompt:
    if known is not None:
        return known
    if len(offer.name) > _LONGEST_SOURCE_NAME:
        raise DefinitionRefused(f"Its name has more than {_LONGEST_SOURCE_NAME} characters.")
    name = free_name(row, offer.name, Prompt)
    return Prompt(source=row, name=name, source_name=offer.name)


def _resource(row: DataSource, offer: Offer, known: Resource | None) -> Resource:
    is_template = offer.kind == "template"
    if is_template:
        pattern_of(offer.name)
    elif not is_uri(offer.name):
        raise DefinitionRefused("It is no URI: a scheme and visible ASCII characters, at most 1,024.")
    if known is not None:
        known.is_template = is_template
        return known
    if other := _other(row, offer.name, is_template):
        what = "this URI already" if other.uri == offer.name else f"{other.uri}, which leads to the same URIs"
        said = f"The data source {other.source} offers {what}: a URI leads to one of them only."
        raise DefinitionRefused(f"{said} If it is to be this one, delete the other, and synchronise again.")
    return Resource(source=row, uri=offer.name, is_template=is_template)


def _other(row: DataSource, uri: str, is_template: bool) -> Resource | None:
    """What leads to the same URIs already: the same one, or of a template one that differs in its placeholders only."""
    found = Resource.objects.filter(uri=uri).select_related("source").first()
    if found is not None or not is_template:
        return found
    others = Resource.objects.filter(is_template=True).exclude(source=row).select_related("source")
    return next((each for each in others if shape_of(each.uri) == shape_of(uri)), None)


def _save(row: Offered, offer: Offer) -> str:
    """Keep the definition; what became of the row."""
    text = _written(named(offer.definition, row.name) if isinstance(row, Prompt) else offer.definition)
    mark = hashlib.sha256(text.encode()).hexdigest()
    is_new = row._state.adding
    if not is_new and row.fingerprint == mark and not row.missing:
        return "unchanged"
    row.definition, row.fingerprint, row.missing = text, mark, False
    row.save()
    return "created" if is_new else "changed"


def _written(definition: dict[str, Any]) -> str:
    try:
        text = exact.written(definition)
    except orjson.JSONEncodeError as error:
        raise DefinitionRefused("The definition holds something that JSON cannot.") from error
    if len(text) > _LARGEST:
        raise DefinitionRefused(f"The definition is larger than {_LARGEST // 1024} KB.")
    if b"\\u0000" in text:
        raise DefinitionRefused("The definition holds a NUL character.")
    return text.decode()
