"""`make fuzz`: feeds what parses messages of clients and upstreams with bytes that find their own way (atheris).

Each target runs in a process of its own for its share of the time. What breaks one is kept as a file, and named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_TARGETS = ("json", "wire", "headers", "cursor", "state", "upstream", "events", "http", "schema")
_STATS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_EDGES = re.compile(r"cov: (\d+)")
# Nothing of it is reached: only what is computed is fuzzed.
_SETTINGS = {
    "DJANGO_SETTINGS_MODULE": "mcpsite.settings",
    "SECRET_KEY": "not-a-secret-but-long-enough-0123456789-abcdefghijklmnopqrstuvwxyz-ABCDEFG",
    "ENCRYPTION_KEYS": "k1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "DATABASE_URL": "postgresql://site:none@127.0.0.1:5432/mcpsite",
    "DATABASE_OWNER_URL": "postgresql://owner:none@127.0.0.1:5432/mcpsite",
    "REDIS_URL": "redis://127.0.0.1:6379/0",
}
# One input may not take longer, nor the whole process more memory.
_INPUT_SECONDS, _MEMORY_MB, _LONGEST_INPUT = 5, 2048, 4096


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default %(default)s)")
    parser.add_argument("--targets", type=_names, default=list(_TARGETS), help=f"some of {','.join(_TARGETS)}")
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="keep what was found interesting, for next time")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER",
                        help="where inputs that break something are kept (default %(default)s)")  # fmt: skip
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one such input on the target that it names")
    parser.add_argument("--run", choices=_TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = value.split(",")
    if unknown := set(names) - set(_TARGETS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(_TARGETS)}")
    return names


def _fuzz(name: str, rest: list[str]) -> None:
    """In a process of its own: does not return."""
    import atheris

    with atheris.instrument_imports(include=["gateway", "tools.connectors", "tools.exact", "tools.schemas"]):
        targets = _targets()
    run = targets.TARGETS[name].run
    atheris.Setup([sys.argv[0], *rest], run)
    atheris.Fuzz()


def _targets() -> ModuleType:
    os.environ.update(_SETTINGS)
    import django

    django.setup()
    from bench.fuzz import targets

    return targets


def _campaign(options: argparse.Namespace) -> int:
    targets = _targets().TARGETS
    options.findings.mkdir(parents=True, exist_ok=True)
    broken = []
    with tempfile.TemporaryDirectory(prefix="mcpsite-fuzz-") as scratch:
        for name in options.targets:
            corpus = (options.corpus or Path(scratch)) / name
            corpus.mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate(targets[name].seeds):
                (corpus / f"seed-{number}").write_bytes(seed)
            words = Path(scratch) / f"{name}.words"
            words.write_text("".join(f'"{_escaped(word)}"\n' for word in targets[name].words))
            if not _one(name, corpus, words, options):
                broken.append(name)
    print(f"broken: {', '.join(broken)}" if broken else "nothing broke", flush=True)
    return 1 if broken else 0


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _one(name: str, corpus: Path, words: Path, options: argparse.Namespace) -> bool:
    """Whether the target stood it."""
    command = [sys.executable, "-m", "bench.fuzz", "--run", name, "--", str(corpus), f"-dict={words}",
               f"-max_total_time={options.seconds}", f"-max_len={_LONGEST_INPUT}", f"-timeout={_INPUT_SECONDS}",
               f"-rss_limit_mb={_MEMORY_MB}", f"-artifact_prefix={options.findings}/{name}-",
               "-print_final_stats=1"]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    runs, edges = _STATS.findall(done.stdout), _EDGES.findall(done.stdout)
    said = "stood" if done.returncode == 0 else "BROKE"
    print(
        f"{name:10} {said}  {int(runs[-1]) if runs else 0:>10,} inputs  {edges[-1] if edges else '?':>6} edges",
        flush=True,
    )
    if done.returncode:
        print(done.stdout[-4000:], flush=True)
    return done.returncode == 0


def _replay(file: Path) -> int:
    name = file.name.partition("-")[0]
    if name not in _TARGETS:
        print(f"The name of the file begins with none of {', '.join(_TARGETS)}.")
        return 2
    _targets().TARGETS[name].run(file.read_bytes())
    print("It breaks nothing.")
    return 0


def main() -> int:
    """Run the campaign, one target, or one input; 1 when something broke."""
    options = _options()
    if options.run:
        _fuzz(options.run, options.rest)
    if options.replay:
        return _replay(options.replay)
    return _campaign(options)


if __name__ == "__main__":
    sys.exit(main())
