"""Who drives jobs: a process by the machine it runs on, its number and its start, so that its end can be known."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import secrets
from pathlib import Path

import psutil

from farm.store.journal import Owner


@functools.cache
def machine() -> str:
    """This machine since its start, and this container's view of it: where process numbers mean one thing."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8])
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return "-".join(parts)


def start_of(pid: int) -> float:
    """When a process began, by a clock that nobody sets: ticks since the machine started, where the system tells them.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    try:
        told = Path(f"/proc/{pid}/stat").read_text()
        return float(told.rpartition(")")[2].split()[19])  # field 22 of proc(5), counted after the name
    except (OSError, IndexError, ValueError):
        return float(psutil.Process(pid).create_time())


def this_process() -> Owner:
    """A new owner's name each time."""
    pid = os.getpid()
    name = f"{platform.node()[:20]}-{pid}-{secrets.token_hex(4)}"
    return Owner(name, machine(), pid, start_of(pid))


def is_dead(owner: Owner) -> bool:
    """Whether a process is known to have ended; False where it ran on another machine."""
    if owner.host != machine():
        return False
    try:
        return start_of(owner.pid) != owner.started or psutil.Process(owner.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
