"""An older state of the database comes back: seen from outside, shown, and settled only by a signed break."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audit import verify
from audit.witness import State
from mcpsite import env
from mcpsite.tests.test_up import MANAGE, Up, wait_for

ROOT = Path(MANAGE).parent
SECONDS = 60


class Site(Up):
    """An installation with a witness and an anchor."""

    @property
    def witness(self) -> State:
        file = self.data / "witness/state.json"
        return State.parse(file.read_text() if file.exists() else None)

    @property
    def kept(self) -> verify.Head:
        return verify.parse_head(verify.parse_note(self.witness.head).text)

    def health(self) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"http://localhost:{self.port}/health", timeout=10) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as refusal:
            return dict(json.load(refusal))

    def knock(self) -> None:
        """Somebody tries a wrong password, which is on record."""
        url = f"http://localhost:{self.port}/api/v1/auth/token/"
        body = json.dumps({"username": "mallory", "password": "guessed"}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=10)

    def manage_py(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, MANAGE, *words], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
            env=env.for_child(MCPSITE_DATA=str(self.data), PUBLIC_URL=f"http://localhost:{self.port}"),
        )  # fmt: skip

    def witness_py(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "audit.witness", *words, "--state", str(self.data / "witness")], cwd=ROOT,
            capture_output=True, text=True, timeout=SECONDS,
        )  # fmt: skip

    def signs(self) -> bool:
        """Whether the witness has signed a head, and nothing is wrong."""
        return bool(self.witness.head) and self.witness.handed_in and not self.witness.red


@pytest.fixture
def site() -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="mcpsite-restored-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        anchors = Path(folder) / "anchors"
        anchors.mkdir()
        mine = {"DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "MCPSITE_DATA", "PUBLIC_URL"}
        found = {name: value for name, value in env.for_child().items() if name not in mine}
        site = Site(Path(folder), "--workers", "1", "--no-demo", env={**found, "LEDGER_ANCHORS": f"file://{anchors}"})
        try:
            yield site
        finally:
            if site.process is not None and not site.ended:
                site.stop()


def test_a_restored_backup_is_red_until_a_break_is_signed_and_accepted(site):
    site.start()
    wait_for(site.signs, lambda: site.said)
    assert site.stop() == 0
    shutil.copytree(site.data / "postgres", site.folder / "backup", symlinks=True)
    saved = json.loads((site.data / "sealer.json").read_text())["number"]

    site.start()
    site.knock()
    wait_for(lambda: site.kept.number > saved and site.signs(), lambda: site.said)
    newest = site.kept
    wait_for(lambda: site.health()["status"] == "healthy", lambda: str(site.health()))
    assert site.stop() == 0

    _restore(site)
    site.start()
    wait_for(lambda: site.witness.red, lambda: site.said)
    assert site.witness.red["code"] == "head_behind"
    wait_for(lambda: contradicted(site.health()), lambda: str(site.health()))
    assert site.witness_py("status").returncode == 3
    evidence = json.loads((site.data / "witness" / site.witness.red["evidence"]).read_text())
    assert verify.parse_head(verify.parse_note(evidence["kept"]).text) == newest

    done = site.manage_py("ledger", "accept-restore", "--reason", "The disk died.")
    assert done.returncode == 0, done.stderr
    wait_for(lambda: site.health()["status"] == "healthy", lambda: str(site.health()))
    assert site.witness.red, "the witness is not told by the site what is right"
    number = done.stdout.split()[1]
    token = site.data / "secrets/witness_token"
    url = ("--url", f"http://localhost:{site.port}", "--token-file", str(token))
    wrong = site.witness_py("accept", *url, "--head", str(int(number) - 1))
    assert "no `break` line" in wrong.stderr
    accepted = site.witness_py("accept", *url, "--head", number)
    assert accepted.returncode == 0, accepted.stderr
    assert "'The disk died.'" in accepted.stdout
    wait_for(lambda: site.signs() and site.kept.number >= int(number), lambda: site.said)
    assert site.witness_py("status").returncode == 0


def contradicted(health: dict[str, Any]) -> bool:
    return (health["status"], health.get("ledger")) == ("degraded", "contradicted")


def _restore(site: Site) -> None:
    """As from a backup of the disk: the database is that of before, what is outside of it is not."""
    owner = os.stat(site.data / "postgres")
    shutil.rmtree(site.data / "postgres")
    shutil.copytree(site.folder / "backup", site.data / "postgres", symlinks=True)
    for folder, _, files in os.walk(site.data / "postgres"):
        for path in (folder, *(os.path.join(folder, name) for name in files)):
            os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
