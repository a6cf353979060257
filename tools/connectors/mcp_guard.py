"""Runs one server, and sees to it that nothing of it survives: started as a program of its own, never imported.

Between the site and the server stands this small process. It gives the server its limits, is told by the kernel when
the site's process dies, even by SIGKILL, and inherits whatever the server leaves behind, so that it can end that too. A
process of its own because nothing but `exec` may safely happen between `fork` and `exec` in a site with threads.
Knows nothing of the project, so that it starts fast.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import sys
import time

_SET_PDEATHSIG, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 36, 38
_HEARD = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# After SIGTERM, and after SIGKILL.
_GRACE_SECONDS, _END_SECONDS = 1.5, 1.5
_NOT_STARTED = 127


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def run(parent: int, home: str, memory_mb: int, open_files: int, command: list[str]) -> int:
    """The return code of the server, as `subprocess` would have it. `memory_mb` is 0 for no limit."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    _prctl(_SET_PDEATHSIG, signal.SIGTERM)
    _prctl(_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:  # it died before the kernel knew what we want
        return _NOT_STARTED
    guard = os.getpid()
    server = os.fork()
    if server == 0:
        _become(guard, home, memory_mb, open_files, command)
    _let_go_of_pipes()
    code = _wait(server)
    _end_all(server)
    return code


def _become(guard: int, home: str, memory_mb: int, open_files: int, command: list[str]) -> None:
    """In the child: take the limits, and be the server. Does not return."""
    try:
        os.setsid()
        _prctl(_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(_NOT_STARTED)
        _prctl(_SET_NO_NEW_PRIVS, 1)
        _limit(resource.RLIMIT_CORE, 0)
        _limit(resource.RLIMIT_NOFILE, open_files)
        if memory_mb:
            # Of the data, not of the address space, of which some runtimes reserve far more than they use.
            _limit(resource.RLIMIT_DATA, memory_mb * 1024 * 1024)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.umask(0o077)
        os.chdir(home)
        os.closerange(3, 65536)
        os.execvp(command[0], command)  # noqa: S606 - no shell is what we want
    except (OSError, ValueError) as error:
        os.write(2, f"{command[0]} cannot be started: {error}\n".encode())
    finally:
        os._exit(_NOT_STARTED)


def _limit(what: int, value: int) -> None:
    _, most = resource.getrlimit(what)
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(what, (value, value))


def _let_go_of_pipes() -> None:
    """The pipes are the server's alone: the site sees at once when it closes them."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.closerange(3, 65536)  # uvloop hands each pipe down twice


def _wait(server: int) -> int:
    """The server's return code; when we are asked to stop, so is it."""
    while True:
        heard = signal.sigwait(_HEARD)
        if (code := _reaped(server)) is not None:
            return code
        if heard != signal.SIGCHLD:
            return _stop(server)


def _stop(server: int) -> int:
    _signal_group(server, signal.SIGTERM)
    until = time.monotonic() + _GRACE_SECONDS
    while (left := until - time.monotonic()) > 0:
        signal.sigtimedwait({signal.SIGCHLD}, left)
        if (code := _reaped(server)) is not None:
            return code
    return -signal.SIGKILL


def _reaped(server: int) -> int | None:
    """Reap whoever has ended; the server's return code when it is among them."""
    code = None
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return code
            if pid == server:
                code = os.waitstatus_to_exitcode(status)
    except ChildProcessError:
        return code


def _end_all(server: int) -> None:
    """Kill the server's group and all its descendants, also those that made sessions of their own."""
    _signal_group(server, signal.SIGKILL)
    until = time.monotonic() + _END_SECONDS
    while time.monotonic() < until:
        _reaped(server)
        left = _descendants(os.getpid())
        if not left:
            _reaped(server)  # those that have ended meanwhile
            return
        for pid in left:
            _kill(pid)
        signal.sigtimedwait({signal.SIGCHLD}, 0.02)


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except OSError:  # it is gone
        return


def _kill(pid: int) -> None:
    """Kill the group at one blow, since one that forks would outrun us; then the process itself."""
    try:
        group = os.getpgid(pid)
        if group != os.getpgrp():
            os.killpg(group, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
    except OSError:  # it is gone
        return


def _descendants(root: int) -> list[int]:
    """All that live below `root`, from /proc; elsewhere there are none that we could know of."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if sys.platform == "linux" else ()):
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                state, parent = file.read().rpartition(b")")[2].split()[:2]
        except OSError:  # it is gone
            continue
        if state != b"Z":
            parents[int(name)] = int(parent)
    below = {root}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return sorted(below - {root})


def main() -> None:
    """`mcp_guard.py PARENT HOME MEMORY_MB OPEN_FILES PROGRAM [ARGUMENT …]`."""
    parent, home, memory_mb, open_files, *command = sys.argv[1:]
    try:
        code = run(int(parent), home, int(memory_mb), int(open_files), command)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    if code < 0:  # end as it did
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
