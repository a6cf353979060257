"""A form for the arguments of any tool, made from its input schema; what a form cannot express is written as JSON.

Fields are named by JSON pointers (RFC 6901): `arg:/customer/tags/0`, and `rows:/customer/tags` says how many rows a
list shows. A draft is what such a form sends: names and texts. What is left empty is not sent to the tool. Nothing is
checked here but that a text can be read: whether arguments fit the schema is for the pipeline to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tools import exact
from tools.nesting import is_writable

Kind = Literal["text", "long", "number", "choice", "date", "datetime", "json", "object", "list"]
Draft = Mapping[str, str]

ARGUMENT, ROWS = "arg:", "rows:"
_DEEPEST, _MOST_FIELDS, _MOST_ROWS = 6, 200, 50
_LONG_TEXT = 255
_DAY, _MINUTE, _SECOND = (re.compile(r"\d{4}-\d\d-\d\d" + more) for more in ("", r"T\d\d:\d\d", r"T\d\d:\d\d:\d\d"))
_UTC = "Z"
_FORMATS: dict[str, Kind] = {"date": "date", "date-time": "datetime"}
_LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "pattern": "fits {}",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_UNSET = object()


class Inexpressible(ValueError):
    """These arguments cannot be shown as a form."""


@dataclass(frozen=True, slots=True)
class Field:
    """One line of the form; of an object its properties are `children`, of a list its rows."""

    kind: Kind
    path: str
    label: str
    help: str = ""
    limits: str = ""
    required: bool = False
    value: str = ""
    placeholder: str = ""
    choices: tuple[tuple[str, str], ...] = ()
    children: tuple[Field, ...] = ()
    integer: bool = False
    # One of a list, by its number: there is no saying whether it is required.
    row: bool = False

    @property
    def name(self) -> str:
        """Under which the form sends its text."""
        return ARGUMENT + self.path

    @property
    def rows_name(self) -> str:
        """Under which the form sends how many rows a list has."""
        return ROWS + self.path


def form_of(schema: dict[str, Any], draft: Draft) -> Field:
    """The form with what the draft has filled in."""
    return _Builder(schema, draft).build(schema, "", "", required=True, depth=0)


def draft_of(schema: dict[str, Any], arguments: dict[str, Any]) -> dict[str, str]:
    """The draft that stands for these arguments. Raises Inexpressible."""
    draft: dict[str, str] = {}
    _flatten(form_of(schema, draft), arguments, schema, schema, draft)
    if arguments_of(form_of(schema, draft)) != (arguments, {}):
        raise Inexpressible("The form cannot show these arguments as they are. Edit them as JSON.")
    return draft


def arguments_of(form: Field) -> tuple[dict[str, Any], dict[str, str]]:
    """The arguments that the form stands for, and what is wrong with fields whose text cannot be read, by name."""
    errors: dict[str, str] = {}
    found = _value(form, errors)
    return (found if isinstance(found, dict) else {}), errors


def with_row(draft: Draft, path: str) -> dict[str, str]:
    """The draft with one more row in the list at `path`."""
    return {**draft, ROWS + path: str(min(_rows(draft, path) + 1, _MOST_ROWS))}


def without_row(draft: Draft, path: str) -> dict[str, str]:
    """The draft without the row at `path`; the rows behind it move up."""
    at, _, number = path.rpartition("/")
    gone, count = _row_number(number, 0), _rows(draft, at)
    kept = {}
    for name, text in draft.items():
        prefix, _, rest = name.partition(":")
        place = re.match(re.escape(at) + r"/(\d{1,4})(?=/|\Z)", rest)
        row = int(place[1]) if place else -1
        if row == gone:
            continue
        moved = f"{at}/{row - 1}{rest[place.end() :]}" if place and row > gone else rest
        kept[f"{prefix}:{moved}"] = text
    return {**kept, ROWS + at: str(max(0, count - 1))}


def _rows(draft: Draft, path: str, least: int = 0) -> int:
    return min(_row_number(draft.get(ROWS + path, ""), least), _MOST_ROWS)


def _row_number(text: str, otherwise: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 5 else otherwise


def pointer(path: str, name: object) -> str:
    """The JSON pointer of a member of what is at `path`."""
    return f"{path}/{str(name).replace('~', '~0').replace('/', '~1')}"


# --- From the schema --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Builder:
    root: dict[str, Any]
    draft: Draft
    left: int = field(default=_MOST_FIELDS)

    def build(self, schema: Any, path: str, label: str, *, required: bool, depth: int) -> Field:
        self.left -= 1
        shape = shape_of(schema, self.root)
        kind = _kind(shape, depth, self.left)
        children = tuple(self._children(kind, shape, path, required, depth))
        given = self.draft.get(ARGUMENT + path, "")
        return Field(
            kind,
            path,
            str(shape.get("title") or label),
            help=str(shape.get("description") or ""),
            limits=_limits(shape),
            required=required,
            value=given,
            placeholder=_placeholder(shape),
            choices=_choices(shape, required) if kind == "choice" else (),
            children=children,
            integer=shape.get("type") == "integer",
        )

    def _children(self, kind: Kind, shape: dict[str, Any], path: str, required: bool, depth: int) -> Iterator[Field]:
        if kind == "object":
            needed = shape.get("required") or ()
            for name, each in shape["properties"].items():
                yield self.build(each, pointer(path, name), name, required=name in needed, depth=depth + 1)
        if kind == "list":
            for row in range(_rows(self.draft, path, least=1 if required else 0)):
                built = self.build(shape["items"], pointer(path, row), "", required=True, depth=depth + 1)
                yield replace(built, label=f"Row {row + 1}", row=True)


def shape_of(schema: Any, root: dict[str, Any]) -> dict[str, Any]:
    """The schema with its `$ref` followed and without `| null`; what is said next to a reference counts more."""
    found = schema if isinstance(schema, dict) else {}
    for _ in range(_DEEPEST):
        branches = found.get("anyOf") or found.get("oneOf") or found.get("allOf")
        choices = [each for each in branches or () if isinstance(each, dict) and each.get("type") != "null"]
        if isinstance(reference := found.get("$ref"), str):
            rest = {name: value for name, value in found.items() if name != "$ref"}
            found = {**_target(root, reference), **rest}
        elif branches and len(choices) == 1 and not ({"type", "properties", "items"} & set(found)):
            rest = {name: value for name, value in found.items() if name not in ("anyOf", "oneOf", "allOf")}
            found = {**choices[0], **rest}
        else:
            break
    if isinstance(kinds := found.get("type"), list):
        kinds = [each for each in kinds if each != "null"]
        found = {**found, "type": kinds[0] if len(kinds) == 1 else None}
    return found


def _target(root: dict[str, Any], reference: str) -> dict[str, Any]:
    node: Any = root
    if not reference.startswith("#/"):
        return {}
    for part in reference[2:].split("/"):
        node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _kind(shape: dict[str, Any], depth: int, left: int) -> Kind:
    if depth == 0:
        return "object" if isinstance(shape.get("properties"), dict) else "json"
    values = [shape["const"]] if "const" in shape else shape.get("enum")
    if isinstance(values, list) and values and all(not isinstance(each, (dict, list)) for each in values):
        return "choice"
    match shape.get("type"):
        case "boolean":
            return "choice"
        case "integer" | "number":
            return "number"
        case "string":
            return _text_kind(shape)
        case "object" if depth < _DEEPEST and left > 0 and isinstance(shape.get("properties"), dict):
            return "object" if shape["properties"] else "json"
        case "array" if depth < _DEEPEST and left > 0 and isinstance(shape.get("items"), dict):
            return "json" if "prefixItems" in shape else "list"
    return "json"


def _text_kind(shape: dict[str, Any]) -> Kind:
    if (known := _FORMATS.get(str(shape.get("format")))) is not None:
        return known
    longest = shape.get("maxLength")
    if isinstance(longest, (int, float)):
        return "long" if longest > _LONG_TEXT else "text"
    return "text" if "format" in shape or "pattern" in shape else "long"


def _choices(shape: dict[str, Any], required: bool) -> tuple[tuple[str, str], ...]:
    values = [shape["const"]] if "const" in shape else shape.get("enum", [True, False])
    default = f"not sent (default: {_plain(shape['default'])})" if "default" in shape else "not sent"
    nothing = [("", "choose…" if required else default)]
    return (*nothing, *((json.dumps(value, ensure_ascii=False), _plain(value)) for value in values))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _placeholder(shape: dict[str, Any]) -> str:
    examples = shape.get("examples")
    if "default" in shape:
        return f"default: {_plain(shape['default'])}"[:120]
    return f"e.g. {_plain(examples[0])}"[:120] if isinstance(examples, list) and examples else ""


def _limits(shape: dict[str, Any]) -> str:
    told = [
        said.format(shape[name]) for name, said in _LIMITS.items() if isinstance(shape.get(name), (int, float, str))
    ]
    if shape.get("format") == "date-time":
        told.append("in UTC")
    return ", ".join(told)[:300]


# --- From texts to values and back ------------------------------------------------------------------------------------


def _value(form: Field, errors: dict[str, str]) -> Any:
    match form.kind:
        case "object":
            pairs = ((each, _value(each, errors)) for each in form.children)
            found = {_member(each): value for each, value in pairs if value is not _UNSET}
            return found if found or form.required else _UNSET
        case "list":
            rows = [(each, _value(each, errors)) for each in form.children]
            kept = [value for _, value in rows if value is not _UNSET]
            return kept if kept or form.required else _UNSET
    return _read(form, errors) if form.value else _UNSET


def _member(form: Field) -> str:
    return form.path.rpartition("/")[2].replace("~1", "/").replace("~0", "~")


def _read(form: Field, errors: dict[str, str]) -> Any:
    text = form.value
    match form.kind:
        case "number":
            return _number(text.strip())
        case "datetime":
            seconds = f"{text}:00" if _MINUTE.fullmatch(text) else text
            return seconds + _UTC if _SECOND.fullmatch(seconds) else text
        case "choice" | "json":
            try:
                found = exact.taken(text)
            except ValueError as error:
                errors[form.name] = f"This is not JSON: {error}."
                return _UNSET
            if is_writable(found):
                return found
            errors[form.name] = "This is nested too deeply."
            return _UNSET
    return text.replace("\r\n", "\n")


def _number(text: str) -> Any:
    """The number, or the text as it is: then the schema refuses it, in its own words."""
    try:
        found = exact.taken(text)
    except ValueError:
        return text
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else text


def _flatten(form: Field, value: Any, schema: Any, root: dict[str, Any], draft: dict[str, str]) -> None:
    shape = shape_of(schema, root)
    if form.kind == "object" and isinstance(value, dict):
        for each in form.children:
            if _member(each) in value:
                _flatten(each, value[_member(each)], shape["properties"][_member(each)], root, draft)
    elif form.kind == "list" and isinstance(value, list):
        draft[form.rows_name] = str(len(value))
        for row, each in enumerate(value[:_MOST_ROWS]):
            path = pointer(form.path, row)
            depth = path.count("/")
            built = _Builder(root, draft).build(shape["items"], path, "", required=True, depth=depth)
            _flatten(built, each, shape["items"], root, draft)
    else:
        draft[form.name] = text = _text(form, value)
        if not _shows(form, text):
            raise Inexpressible(f"The form cannot show the value of {form.path.lstrip('/')}. Edit it as JSON.")


def _text(form: Field, value: Any) -> str:
    if form.kind in ("json", "choice"):
        return json.dumps(value, ensure_ascii=False, indent=2 if form.kind == "json" else None)
    return _plain(value).removesuffix(_UTC) if form.kind == "datetime" else _plain(value)


def _shows(form: Field, text: str) -> bool:
    """Whether a browser shows this text in such a field: what it does not show would be lost."""
    match form.kind:
        case "choice":
            return text in dict(form.choices)
        case "date":
            return _DAY.fullmatch(text) is not None
        case "datetime":
            return _SECOND.fullmatch(text) is not None
        case "text":
            return "\n" not in text
    return True
