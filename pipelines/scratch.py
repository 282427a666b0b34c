"""Temporary folders for artifacts that are files; those of a process that was killed go when another one begins.

A folder's name says whose it is: the process's number, and the namespace in which that number means something.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import psutil


def new_folder() -> Path:
    """An empty folder of this process's; whoever takes what is in it removes both."""
    return Path(tempfile.mkdtemp(prefix=f"longtake-made-{_namespace()}-{os.getpid()}-"))


def remove_orphans() -> list[Path]:
    """Remove the folders of processes that are no more; those that were removed."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"longtake-made-{_namespace()}-*-*"):
        with contextlib.suppress(ValueError, OSError):
            if _has_ended(int(folder.name.split("-")[3])):
                shutil.rmtree(folder)
                removed.append(folder)
    return removed


def _namespace() -> str:
    """Of process numbers: other containers that share the folder have others."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return "0"


def _has_ended(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
