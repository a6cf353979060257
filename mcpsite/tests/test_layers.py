"""The floors of the house, read from the source: what imports what, and where foreign words may be spoken."""

from __future__ import annotations

import ast
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# From the lowest to the highest. A floor may import itself and what is below it.
FLOORS = ("keyring", "audit", "tools", "access", "gateway", "agents", "ops", "mcpsite")

# Foreign word → pattern of the files that may import it → why.
ROOMS: dict[str, dict[str, str]] = {
    "mcp mcp_types": {
        "gateway/*": "speaks the protocol",
        "tools/connectors/mcp*.py": "speaks it to upstreams",
        "mcpsite/first_call.py": "is a process of its own that calls with the official client",
        "mcpsite/demo/*": "the demo's upstream is made with the official server",
    },
    "langchain* langgraph": {
        "agents/engine.py": "runs an agent",
        "agents/chat_models.py": "makes the model that it asks",
        "agents/scripted.py": "is a model without AI",
        "agents/toolkit.py": "offers our tools to it",
    },
    "sqlalchemy aiohttp httptools httpx* requests": {
        "tools/connectors/*": "talk to the outside world",
        "agents/outgoing.py": "makes the HTTP client that models are asked with",
        "mcpsite/first_call.py": "the official client is given its HTTP client",
    },
    "psycopg psycopg_pool psycopg2": {
        "audit/verify.py": "stands alone: whoever verifies a database elsewhere has no Django",
        "audit/ledger.py": "drives libpq's pipeline mode on the path of every call",
        "audit/sealing/*": "copies rows in and out as they are stored, under a lock that its connection holds",
        "audit/streams/delivery.py": "holds a lock, reads and keeps the place on one connection",
        "audit/streams/worker.py": "tells a lost connection from other failures",
        "gateway/feed.py": "listens for notifications, for which Django has no words",
        "gateway/auth.py": "notes the use of tokens without a thread",
        "gateway/task_rows.py": "keeps tasks without a thread, on the event loop of calls",
        "gateway/metrics.py": "reads the jobs with a limit of time that a pool cannot keep",
        "tools/connectors/*": "talk to databases",
        "mcpsite/engines.py": "makes roles and databases before Django has any",
        "mcpsite/postgres.py": "writes the connection strings for the above",
        "mcpsite/dbroles.py": "quotes identifiers in GRANT statements",
        "mcpsite/health.py": "asks over a connection that no page can hold up",
        "mcpsite/demo/database.py": "quotes identifiers, and copies rows in",
    },
    "rest_framework rest_framework_simplejwt": {
        "*/api.py": "the REST doors",
        "gateway/task_api.py": "the REST door of tasks",
        "access/user_api.py": "the REST door of users",
        "access/lists.py": "how REST pages, filters and orders",
        "audit/conditions.py": "what REST objects share on every floor: ETags and preconditions",
        "access/rest.py": "how REST authenticates, reads and refuses",
        "access/tokens.py": "JWTs and their blacklist are SimpleJWT's",
        "mcpsite/admin.py": "takes SimpleJWT's bookkeeping out of the admin",
        "mcpsite/urls.py": "puts the resources of all floors under one address",
        "mcpsite/settings.py": "configures them",
    },
    "sqlglot": {"tools/connectors/sql*.py": "reads statements"},
    "prometheus_client": {"gateway/metrics.py": "writes what Prometheus reads"},
    "boto3 botocore": {
        "audit/s3.py": "anchors heads and keeps months of the ledger in S3",
        "audit/retention/stores.py": "keeps months of the ledger in S3, in parts",
        "audit/sealing/kms.py": "has heads signed by a key that stays in KMS",
    },
    "dotenv": {"mcpsite/env.py": "reads the .env file"},
}

# Files that may look at the process environment → what they may name there (empty: anything).
ENVIRONMENT: dict[str, frozenset[str]] = {
    "mcpsite/env.py": frozenset(),
    "mcpsite/settings.py": frozenset(),
    # Entry points name the settings before anything of Django can be asked.
    "mcpsite/asgi.py": frozenset({"DJANGO_SETTINGS_MODULE"}),
    "manage.py": frozenset({"DJANGO_SETTINGS_MODULE"}),
    # Stands alone, and is given its token so in a container.
    "audit/witness.py": frozenset({"LEDGER_WITNESS_TOKEN"}),
    # Below env.py, which imports it: where the desktop standard wants data and sockets to be.
    "mcpsite/datadir.py": frozenset({"XDG_DATA_HOME", "XDG_RUNTIME_DIR"}),
}

FORBIDDEN_NAMES = frozenset({"utils", "util", "services", "service", "helpers", "helper", "common", "misc"})


@dataclass(frozen=True)
class Import:
    """One import: of a module (ours or not) by a file."""

    module: str
    line: int
    # Whether it happens when the file is imported, and not later or only for the type checker.
    at_once: bool


@cache
def files() -> tuple[Path, ...]:
    """The Python files of the floors and of the root, without tests and migrations, relative to the root."""
    found = [path.relative_to(ROOT) for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    return (Path("manage.py"), *(path for path in found if not {"tests", "migrations"} & set(path.parts)))


@cache
def tree(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def module_name(path: Path) -> str:
    """`gateway/calls.py` → `gateway.calls`, `gateway/__init__.py` → `gateway`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import statement of the file, wherever it stands."""
    return tuple(_imports(tree(path), path, at_once=True))


def _imports(node: ast.AST, path: Path, at_once: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(name.name, child.lineno, at_once) for name in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = _absolute(child, path)
            for name in child.names:
                whole = f"{base}.{name.name}"
                yield Import(whole if _is_module(whole) else base, child.lineno, at_once)
        elif isinstance(child, ast.If) and _is_for_types(child.test):
            yield from (one for part in child.body for one in _imports(_alone(part), path, at_once=False))
            yield from (one for part in child.orelse for one in _imports(_alone(part), path, at_once))
        else:
            later = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _imports(child, path, at_once and not later)


def _alone(statement: ast.stmt) -> ast.Module:
    return ast.Module(body=[statement], type_ignores=[])


def _is_for_types(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = path.parent.parts[: len(path.parent.parts) - node.level + 1]
    return ".".join((*package, *((node.module,) if node.module else ())))


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _floor(module: str) -> int | None:
    top = module.partition(".")[0]
    return FLOORS.index(top) if top in FLOORS else None


def _matches(module: str, words: str) -> bool:
    top = module.partition(".")[0]
    return any(fnmatch.fnmatchcase(top, word) for word in words.split())


# --- The rules -------------------------------------------------------------------------------------------------------


def test_there_is_something_to_read():
    assert len(files()) > 60
    assert sum(len(imports(path)) for path in files()) > 500


def test_no_floor_imports_a_higher_one():
    upward = []
    for path in files():
        own = _floor(module_name(path))
        for each in imports(path):
            other = _floor(each.module)
            if own is not None and other is not None and other > own:
                upward.append(f"{path}:{each.line} imports {each.module}, which is a floor above")
    assert not upward, "\n".join(upward)


def test_the_cellar_imports_nothing_of_ours():
    for path in files():
        if path.parts[0] == "keyring":
            foreign = [e.module for e in imports(path) if _floor(e.module) is not None and _floor(e.module) != 0]
            assert not foreign, f"{path} imports {foreign}"


def test_the_site_imports_no_tests_and_no_benchmarks():
    wrong = [
        f"{path}:{each.line} imports {each.module}"
        for path in files()
        for each in imports(path)
        if each.module.split(".")[0] in ("bench", "conftest")
        or (_floor(each.module) is not None and ".tests" in each.module)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module_name(path): {each.module for each in imports(path) if each.at_once and _floor(each.module) is not None}
        for path in files()
    }
    circle = _circle(graph)
    assert not circle, "These modules import each other: " + " → ".join(circle)


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, the first of them again at the end; empty when there is none."""
    done: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if other != module and (found := walk(other, [*trail, module])):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_a_circle_would_be_found():
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_foreign_words_are_spoken_in_their_rooms_only():
    wrong = []
    for path in files():
        for each in imports(path):
            for words, rooms in ROOMS.items():
                if _matches(each.module, words) and not any(fnmatch.fnmatchcase(str(path), room) for room in rooms):
                    wrong.append(f"{path}:{each.line} imports {each.module}: only {', '.join(rooms)} may")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_in_use():
    """A permission that nobody needs any more is taken back."""
    unused = [
        f"{words}: {room}"
        for words, rooms in ROOMS.items()
        for room in rooms
        if not any(fnmatch.fnmatchcase(str(path), room) and _speaks(path, words) for path in files())
    ]
    # The gateway speaks the protocol without the SDK; it may use it. Settings name the REST framework in strings.
    assert sorted(unused) == [
        "mcp mcp_types: gateway/*",
        "mcp mcp_types: tools/connectors/mcp*.py",
        "rest_framework rest_framework_simplejwt: mcpsite/settings.py",
    ]


def _speaks(path: Path, words: str) -> bool:
    return any(_matches(each.module, words) for each in imports(path))


def test_only_the_settings_read_the_environment():
    wrong = []
    for path in files():
        allowed = ENVIRONMENT.get(str(path))
        for line, name in _environment_uses(tree(path)):
            if allowed is None or (allowed and name not in allowed):
                wrong.append(f"{path}:{line} reads {name or 'the whole environment'}: use a reader of mcpsite.env")
    assert not wrong, "\n".join(wrong)


def _environment_uses(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, variable) for each use of `os.environ` and its kin; the variable is empty when it is not a literal."""
    known: set[ast.AST] = set()
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute):
            if _is_environment(each.func.value):
                known.add(each.func.value)
                yield each.lineno, _literal(each.args[0] if each.args else None)
            elif isinstance(each.func.value, ast.Name) and each.func.value.id == "os" and "env" in each.func.attr:
                yield each.lineno, _literal(each.args[0] if each.args else None)
        elif isinstance(each, ast.Subscript) and _is_environment(each.value):
            known.add(each.value)
            yield each.lineno, _literal(each.slice)
    for each in ast.walk(node):
        if _is_environment(each) and each not in known:
            yield getattr(each, "lineno", 0), ""
        if isinstance(each, ast.ImportFrom) and each.module == "os":
            yield from ((each.lineno, "") for name in each.names if "env" in name.name)


def _is_environment(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in ("environ", "environb") and _is_os(node.value)


def _is_os(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "os"


def _literal(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_modules_are_named_for_what_they_do():
    for path in files():
        names = {part.removesuffix(".py") for part in path.parts}
        assert not names & FORBIDDEN_NAMES, f"{path}: name it for what it does"
    shadows = {path.parts[0].removesuffix(".py") for path in files()} & {"mcp", "mcp_types"}
    assert not shadows, "a top-level module of this name would hide the SDK"
    for path in files():
        if path.stem == "mcp":
            assert path == Path("tools/connectors/mcp.py"), f"{path}: only the connector of that kind has this name"


def test_no_failure_is_passed_over_in_silence():
    wrong = []
    for path in files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and _does_nothing(node.body):
                wrong.append(f"{path}:{node.lineno} swallows every failure")
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                wrong.append(f"{path}:{node.lineno} says `except:` without a name")
            if isinstance(node, ast.Call) and _suppresses_everything(node):
                wrong.append(f"{path}:{node.lineno} suppresses every failure")
    assert not wrong, "\n".join(wrong)


def _is_broad(node: ast.expr | None) -> bool:
    if isinstance(node, ast.Tuple):
        return any(_is_broad(each) for each in node.elts)
    return node is None or (isinstance(node, ast.Name) and node.id in ("Exception", "BaseException"))


def _suppresses_everything(node: ast.Call) -> bool:
    return ast.unparse(node.func).endswith("suppress") and any(_is_broad(argument) for argument in node.args)


def _does_nothing(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(each, (ast.Pass, ast.Continue))
        or (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))
        for each in body
    )
