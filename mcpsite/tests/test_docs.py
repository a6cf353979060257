"""The documentation is tested: what the code has must be described, and what is described must be there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from io import StringIO
from pathlib import Path
from urllib.parse import unquote

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command, get_commands, load_command_class
from django.core.management.base import BaseCommand, CommandError
from django.urls import URLPattern, URLResolver, get_resolver
from dotenv import dotenv_values
from rest_framework import exceptions
from rest_framework.schemas.generators import EndpointEnumerator

from audit.codes import MEANINGS
from audit.verify import FAULTS
from mcpsite import env
from mcpsite.management.commands.settings_reference import BEGIN, COMPOSE, END, page, variables
from mcpsite.tests.browser.screenshots import PICTURES
from mcpsite.tests.containers import compose
from mcpsite.tests.test_layers import files, tree
from tools.connectors.registry import kinds

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# What an installation in containers has no use for, or what is decided by its image.
SEALER_ONLY = {"LEDGER_SIGNING_KEYS", "LEDGER_STATE_FILE"}
NOT_FOR_CONTAINERS = {"DEBUG", "MCPSITE_DATA", "STATIC_ROOT", "DEMO_UPSTREAM_TOKEN", "DEMO_UPSTREAM_DIR"} | SEALER_ONLY

# Codes that are computed or returned, where no call or assignment shows them.
RETURNED = frozenset({"ok", "tool_error", "internal_error", "create", "update", "delete"})


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def first_cells(name: str) -> list[str]:
    """What stands between backticks in the first column of the page's tables."""
    rows = [line.split("|")[1] for line in text(name).splitlines() if line.startswith("| `")]
    return [word for cell in rows for word in re.findall(r"`([^`]+)`", cell)]


# --- Settings --------------------------------------------------------------------------------------------------------


def test_the_reference_of_settings_is_up_to_date():
    command = (sys.executable, "manage.py", "settings_reference", "--check")
    done = subprocess.run(command, capture_output=True, text=True, cwd=settings.BASE_DIR, timeout=120)
    assert "up to date" in done.stdout, done.stderr


def test_every_variable_that_was_read_is_in_the_reference():
    known = {each.name for each in variables()}
    assert set(env.REGISTRY) <= known
    assert all(each.help for each in variables())


def test_the_page_names_no_variable_that_does_not_exist():
    known = {each.name for each in (*variables(), *COMPOSE)}
    allowed = known | {f"{name}_FILE" for name in known} | {"XDG_DATA_HOME", "XDG_RUNTIME_DIR", *FAULTS}
    for each in DOCS.glob("*.md"):
        for name in re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)[`=]", each.read_text(encoding="utf-8")):
            assert name in allowed, f"{each.name} names {name}, which is not read by anything"


def test_the_example_can_be_read_as_it_stands_and_uncommented():
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    assert dotenv_values(stream=StringIO(example)) == {}
    uncommented = "\n".join(re.sub(r"^#(?=[A-Z])", "", line) for line in example.splitlines() if "=" in line)
    assert set(dotenv_values(stream=StringIO(uncommented))) == {each.name for each in (*variables(), *COMPOSE)}


def test_every_setting_reaches_the_containers():
    """A line in .env that has no effect would be worse than an error."""
    wanted = {each.name for each in variables()} - NOT_FOR_CONTAINERS
    for name in ("web", "worker", "agents", "migrate"):
        there = set(compose()["services"][name]["environment"])
        assert there == wanted, "a new setting belongs into x-settings of docker-compose.yml"
    assert set(compose()["services"]["sealer"]["environment"]) == wanted | SEALER_ONLY


def test_a_stale_page_is_written_anew_around_its_text():
    stale = f"before\n{BEGIN}\nstale\n{END}\nafter\n"
    fresh = page(stale, variables())
    assert fresh.startswith("before\n")
    assert fresh.endswith("\nafter\n")
    assert "stale" not in fresh
    assert page(fresh, variables()) == fresh
    with pytest.raises(ValueError, match="no lines"):
        page("nothing here", variables())


def test_a_stale_file_fails_the_check(settings, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "mcpsite").mkdir()
    (tmp_path / "mcpsite/settings.py").write_text('X = env.integer("SOME_NUMBER", "How many.", 7)')
    (tmp_path / "docs/configuration.md").write_text(f"{BEGIN}\n{END}\n")
    settings.BASE_DIR = tmp_path
    with pytest.raises(CommandError, match=r"docs/configuration.md and .env.example"):
        call_command("settings_reference", "--check")
    call_command("settings_reference", stdout=StringIO())
    assert "#SOME_NUMBER=7\n" in (tmp_path / ".env.example").read_text()
    call_command("settings_reference", "--check", stdout=StringIO())


# --- Commands, connectors, API ---------------------------------------------------------------------------------------


def our_commands() -> list[str]:
    ours = {config.name for config in apps.get_app_configs() if Path(config.path).is_relative_to(ROOT)}
    ours = {name for name in ours if (ROOT / name.replace(".", "/")).is_dir()}
    return sorted(name for name, app in get_commands().items() if app in ours)


def test_every_command_is_described():
    assert {"up", "migrate", "loaddemo", "settings_reference"} <= set(our_commands())
    headings = re.findall(r"^### (\S+)$", text("commands.md"), re.MULTILINE)
    missing = [name for name in our_commands() if name not in headings]
    assert not missing, f"docs/commands.md has no section for {missing}"
    gone = [name for name in headings if name not in get_commands()]
    assert not gone, f"docs/commands.md describes {gone}, which are not there"


def test_every_option_of_our_commands_is_described():
    usual = options_of(BaseCommand())
    for name in our_commands():
        command = load_command_class(get_commands()[name], name)
        if name == "migrate":
            continue  # Django's own options
        section = text("commands.md").partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        for option in options_of(command) - usual:
            assert option in section, f"docs/commands.md: {name} has {option}"


def options_of(command):
    return {option for each in command.create_parser("manage.py", "x")._actions for option in each.option_strings}


@pytest.mark.parametrize("target", re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
def test_every_make_target_is_described(target):
    assert f"| `make {target}` |" in text("commands.md")


def section_of(kind: str) -> str:
    found = re.search(rf"^## {kind}: .*?(?=^## |\Z)", text("connectors.md"), re.MULTILINE | re.DOTALL)
    assert found, f"docs/connectors.md has no section “## {kind}: …”"
    return found[0]


def test_every_option_of_every_connector_is_described():
    for kind, connector in kinds().items():
        section = section_of(kind)
        assert connector.label in section.splitlines()[0]
        for name, info in connector.Options.model_fields.items():
            row = re.search(rf"^\| `{info.alias or name}` \| ([^|]+) \|([^|]+)\|$", section, re.MULTILINE)
            assert row, f"docs/connectors.md: {kind} has the option {info.alias or name}"
            default = "required" if info.is_required() else "none" if info.default is None else f"`{info.default}`"
            default = default.lower() if isinstance(info.default, bool) else default
            assert row[1] == default, f"docs/connectors.md: {kind}.{name} has the default {default}"
            assert ("**secret**" in row[2]) == ("SecretStr" in str(info.annotation)), f"{kind}.{name}"


def test_no_option_is_described_that_no_connector_has():
    for kind, connector in kinds().items():
        options = section_of(kind).partition("| Option |")[2].partition("\n\n")[0]
        names = set(re.findall(r"^\| `(\w+)` \|", options, re.MULTILINE))
        assert names == {info.alias or name for name, info in connector.Options.model_fields.items()}


def api_paths() -> set[str]:
    """The paths under /api/ as people write them, without DRF's format suffixes."""
    enumerator = EndpointEnumerator()

    def walk(patterns: list[URLPattern | URLResolver], before: str) -> Iterator[str]:
        for each in patterns:
            whole = before + str(each.pattern)
            if isinstance(each, URLResolver):
                yield from walk(each.url_patterns, whole)
            elif "format" not in whole:
                yield enumerator.get_path_from_regex(whole)

    return {path for path in walk(get_resolver().url_patterns, "") if path.startswith("/api/")}


def named(path: str) -> str:
    """`/x/{pk}/` → `/x/{id}/`, as the page has it."""
    return path.replace("{pk}", "{id}")


def test_every_path_of_the_api_is_described():
    assert len(api_paths()) > 10
    described = {cell for cell in first_cells("api.md") if cell.startswith("/api/")}
    assert described == {named(path) for path in api_paths()}


# --- Codes -----------------------------------------------------------------------------------------------------------


@cache
def places_of_codes() -> dict[str, int]:
    """Function or class → at which position it takes a parameter `code`, for all that we define."""
    found: dict[str, int] = {}
    for path in files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                        _note(found, node.name, inner, 1)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name != "__init__":
                _note(found, node.name, node, 1 if _is_method(node) else 0)
    return found


def _note(found: dict[str, int], name: str, node: ast.FunctionDef | ast.AsyncFunctionDef, skipped: int) -> None:
    names = [argument.arg for argument in node.args.args]
    if "code" in names:
        found[name] = names.index("code") - skipped


def _is_method(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return bool(node.args.args) and node.args.args[0].arg in ("self", "cls")


def words(node: ast.AST | None) -> set[str]:
    """The string constants that an expression can come to."""
    if isinstance(node, ast.Constant):
        return {node.value} if isinstance(node.value, str) and node.value else set()
    if isinstance(node, ast.IfExp):
        return words(node.body) | words(node.orelse)
    if isinstance(node, ast.BoolOp):
        return {word for each in node.values for word in words(each)}
    return set()


@cache
def codes_of_the_source() -> frozenset[str]:
    """Every code word that a record or an answer can hold, as far as the source shows it."""
    found: set[str] = set()
    for path in files():
        if "demo" in path.parts:
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call):
                found |= _codes_of_call(node)
            elif isinstance(node, ast.Assign) and any(_is_code(target) for target in node.targets):
                found |= words(node.value)
    return frozenset(found)


def _codes_of_call(node: ast.Call) -> set[str]:
    name = ast.unparse(node.func).rpartition(".")[2]
    found = {word for keyword in node.keywords if keyword.arg in ("code", "public") for word in words(keyword.value)}
    place = places_of_codes().get(name)
    return found | (words(node.args[place]) if place is not None and place < len(node.args) else set())


def _is_code(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id in ("code", "default_code")


def codes_of_the_framework() -> set[str]:
    """What REST framework refuses with, which our problems pass on."""
    return {
        each.default_code for each in exceptions.APIException.__subclasses__() if each.__module__ == exceptions.__name__
    }


def described_codes() -> list[str]:
    return first_cells("codes.md")


def test_codes_are_found_in_the_source():
    expected = {"not_granted", "unknown_tool", "egress_denied", "upstream_timeout", "intended", "cancelled", "login"}
    assert (
        expected | {"ledger_unavailable", "invalid_token", "insufficient_scope", "test", "sync"}
        <= codes_of_the_source()
    )


def test_every_code_is_described():
    missing = (codes_of_the_source() | RETURNED | codes_of_the_framework()) - set(described_codes())
    assert not missing, f"docs/codes.md lacks {sorted(missing)}"


def test_no_code_is_described_that_cannot_occur():
    known = codes_of_the_source() | RETURNED | codes_of_the_framework()
    superfluous = set(described_codes()) - known
    assert not superfluous, f"docs/codes.md describes {sorted(superfluous)}"


def test_codes_are_stable_words():
    for code in described_codes():
        assert re.fullmatch(r"[a-z][a-z0-9_]{1,40}", code), code


def test_the_admin_says_of_a_code_what_the_page_says():
    told, _, _ = text("codes.md").partition("## REST")
    rows = (line.strip("|").split("|") for line in told.splitlines() if line.startswith("| `"))
    described = {row[0].strip(" `"): row[1].strip() for row in rows}
    assert dict(MEANINGS) == described, "docs/codes.md and audit/codes.py differ: write the same into both"


# --- Links -----------------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _without_code(content: str) -> str:
    return re.sub(r"^```.*?^```", "", content, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", _without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / unquote(place)).resolve() if place else page
        assert target.exists(), f"{page.name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}: there is no such heading"


def test_what_the_ledger_promises_is_written_where_it_says_and_tested():
    """Rows name files of the project, and tests that there are."""
    rows = re.findall(
        r"^\|[^|]*\|[^|]*\|([^|]*)\|((?: `\w[^`|]*::test_\w+`,?)+) \|$", text("evidence.md"), re.MULTILINE
    )
    assert len(rows) == len(re.findall(r"^\|.*::test_", text("evidence.md"), re.MULTILINE)) > 20
    assert [
        each for written, _ in rows for each in re.findall(r"`([^`]+)`", written) if not (ROOT / each).exists()
    ] == []
    named = [tuple(each.split("::")) for _, tests in rows for each in re.findall(r"`([^`]+)`", tests)]
    defined = {path: (ROOT / path).read_text(encoding="utf-8") for path, _ in named}
    assert [each for each in named if f"def {each[1]}(" not in defined[each[0]]] == []


def test_every_picture_is_made_by_the_command_and_shown():
    kept = {path.stem for path in (DOCS / "images").glob("*.png")}
    assert kept == {picture.name for picture in PICTURES}
    shown = {name for page in pages() for name in re.findall(r"images/([\w-]+)\.png\)", page.read_text("utf-8"))}
    assert kept == shown


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([^)#\s]+)", text("index.md")))
    missing = [page.name for page in DOCS.glob("*.md") if page.name not in linked | {"index.md"}]
    assert not missing


def test_the_readme_names_the_two_commands_and_the_licence():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make run" in readme
    assert "make test" in readme
    assert "Apache-2.0" in readme
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
