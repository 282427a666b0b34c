"""The command line as users run it: in a process of its own, with an answer in JSON."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FARM = Path(sys.executable).with_name("farm")  # as users start it: under `python -m` Ctrl-C may end Python otherwise
ONE_POOL = Path(__file__).parent / "data" / "one_pool.yaml"
TIMEOUT_S = 240.0


@dataclass(frozen=True)
class Done:
    code: int
    answer: dict[str, Any]
    told: str  # standard error


def start_farm(
    *argv: str | Path, cwd: Path | None = None, made_pools: bool = False, **environment: str
) -> subprocess.Popen[str]:
    """Start a command.

    Args:
        made_pools: a render that names no pools has those that are made for this machine; else one process for all.
    """
    command = [FARM, *map(str, argv)]
    if argv[0] == "render" and not made_pools and not {"--pools", "--address"} & set(argv):
        command += ["--pools", str(ONE_POOL)]
    return subprocess.Popen(
        command, cwd=cwd, env=os.environ | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen[str], *, timeout_s: float = TIMEOUT_S) -> Done:
    try:
        out, told = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        end_tree(process.pid)
        raise
    lines = out.splitlines()
    return Done(process.returncode, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}, told)


def kill(process: subprocess.Popen[str]) -> None:
    """End it at once. What it has started may live on, and hold the other ends of its pipes."""
    process.kill()
    process.wait(20)
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def farm(
    *argv: str | Path, cwd: Path | None = None, timeout_s: float = TIMEOUT_S, made_pools: bool = False,
    **environment: str,
) -> Done:  # fmt: skip
    return finish(start_farm(*argv, cwd=cwd, made_pools=made_pools, **environment), timeout_s=timeout_s)


def end_tree(pid: int) -> None:
    """Kill a process and all its descendants, by their process ids."""
    try:
        tree = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def replicas_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The replicas of a render on a local Ray."""
    inside = psutil.Process(process.pid).children(recursive=True)
    return [p for p in inside if "ray::Replica" in " ".join(p.cmdline())]


def wait_for_checkpoint(store: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a step checkpoint is in the store while the process renders."""
    wait_until("a step checkpoint", lambda: list(store.glob("checkpoints/*/*/*.safetensors")), during=process)


def wait_until(
    what: str, check: Any, *, timeout_s: float = 120.0, during: subprocess.Popen[str] | None = None
) -> None:  # fmt: skip
    """Poll until `check()` is true.

    Args:
        during: a command that must not have ended before.
    Raises:
        TimeoutError: says what was waited for.
        AssertionError: the command has ended, with what it said.
    """
    end = time.monotonic() + timeout_s
    while not check():
        if during is not None and during.poll() is not None:
            raise AssertionError(f"the command ended while {what} was waited for: {finish(during)}")
        if time.monotonic() > end:
            if during is not None:
                end_tree(during.pid)
                kill(during)  # reaps it, and closes its pipes: the next test must not pay for this one
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.05)
