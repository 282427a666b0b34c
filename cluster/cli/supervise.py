"""The console script `farm`. Commands that join Ray run in a child: Ray's core ends its process without a word where
the cluster's control service or the node's own daemon is gone, and then somebody must still say so.

The child tells its exit code through a pipe before it is torn down, so what happens while it ends changes nothing. It
has a process group of its own, so that Ctrl-C in a terminal reaches it once, through its parent, and it dies with its
parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from cluster.cli.answer import Answer
from cluster.cli.main import main
from farm.errors import Problem

WITH_RAY = ("render", "batch", "serve")
PIPE = "LONGTAKE_EXIT_PIPE"  # the child's environment: where it tells its exit code
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of linux/prctl.h


def start() -> int:
    """What the console script calls."""
    pipe = os.environ.pop(PIPE, "")
    if pipe:
        return _as_child(int(pipe))
    words = sys.argv[1:]
    called = next((word for word in words if not word.startswith("-")), "")
    is_help = {"-h", "--help"} & set(words)
    return supervise(words) if called in WITH_RAY and not is_help and os.name == "posix" else main(words)


def supervise(words: Sequence[str]) -> int:
    """Run a command in a child, and answer for it where it cannot."""
    received, early = list[int](), list[int]()
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the child leaves behind becomes ours, and is ended
    told, tells = os.pipe()
    command = [sys.executable, "-P", "-m", "longtake", *words]  # the working folder holds no code of ours
    child = subprocess.Popen(command, pass_fds=(tells,), process_group=0, env=os.environ | {PIPE: str(tells)})
    os.close(tells)
    if early:
        child.send_signal(early[0])
    code = child.wait()
    with os.fdopen(told, "rb") as pipe:
        answered = pipe.read(8)
    if answered:
        return int(answered)
    _end_orphans()
    answer = Answer(as_json="--json" in words)
    if received and code in (-signal.SIGINT, -signal.SIGTERM):  # before it had handlers of its own
        return answer.fail(130, [Problem("interrupted before it had begun; nothing is lost")])
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    reason = (
        f"the process of this command {how}: it was killed, ran out of memory, or lost Ray (its GCS or raylet is "
        "gone); what is finished stays in the store, and the same command goes on from it"
    )
    return answer.fail(3, [Problem(reason)])


def _as_child(pipe: int) -> int:
    os.set_inheritable(pipe, False)
    parent = os.getppid()
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask for that
        os._exit(130)
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(pipe, str(code).encode())
    return code


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).prctl(option, value)


def _end_orphans() -> None:
    """Ray's own processes notice that their driver is gone only after a while."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    sys.exit(start())
