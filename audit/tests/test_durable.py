"""Files that survive a loss of power: what is brought to the disk, and in which order."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from audit.durable import replace_file


def test_the_content_is_on_disk_before_the_name_and_the_name_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}")
        done.append(path.read_text() if stat.S_ISREG(os.fstat(descriptor).st_mode) else "folder")
        fsync(descriptor)

    def seen_replace(*names: Any) -> None:
        done.append("name")
        replace(*names)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    file = tmp_path / "file"
    file.write_text("old")
    replace_file(file, "new", 0o640)
    assert done == ["new", "name", "folder"]
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o640)
    assert list(tmp_path.iterdir()) == [file]
