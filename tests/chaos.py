"""Kill what renders a film, at a random moment, and carry on with the same command: `make chaos` (60 rounds, an hour).

What is killed, in turn: a replica, the controller, the door (`farm render`) with its own Ray, a whole emulated node,
and every process of the cluster. `--gangs` has replicas of two ranks on a cluster that has room for one of them; there
a rank is killed, or made to stand still. After each round the film must have the frames of an undisturbed one, nothing
that was finished may have run again, no denoise task may have begun before its last checkpoint, and nothing may be left
over.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from emulated_cluster import emulated_cluster
from farm_process import end_tree, finish, kill, start_farm, wait_until
from measure import save, spread

from farm.plan.plan import make_plan
from farm.pools.pools import load_pools, numerics
from farm.store.jobs import read_job
from farm.store.journal import read_attempts
from farm.store.store import Store
from farm.worlds.audit import faults_of_job

BOARD = """\
title: Chaos
size: 64x48
fps: 8
steps: 250
shots:
  - {id: one, prompt: a red ball rolls over grass, frames: 53}
  - {id: two, prompt: a blue cube spins over sand, frames: 45, continuity: {mode: blend},
     transition: {kind: crossfade, seconds: 0.5}}
  - {id: three, prompt: a green cone floats over snow, frames: 17}
"""
POOLS = """\
pools:
  denoise: {stages: [encode, denoise], replicas: {min: 2, max: 2}, checkpoint: {seconds: 0, steps: 20}}
  media: {stages: [decode, assemble], replicas: {min: 1, max: 1}}
"""
GANG_BOARD = """\
title: Gang chaos
size: 64x48
fps: 8
steps: 120
shots:
  - {id: one, prompt: a red ball rolls over grass, frames: 29}
  - {id: two, prompt: a blue cube spins over sand, frames: 17}
"""
GANG_TIMEOUT_S = 10.0
GANG_POOLS = f"""\
pools:
  encode: {{stages: [encode]}}
  denoise: {{stages: [denoise], gpus: 1, ranks: 2, parallel: {{ulysses: 2}}, gang_timeout_s: {GANG_TIMEOUT_S:g},
            dtype: float32, checkpoint: {{seconds: 0, steps: 10}}}}
  media: {{stages: [decode, assemble]}}
"""
GANG_KINDS = ("rank", "frozen rank")
GANG_NODES = [{"num_cpus": 6, "num_gpus": 2}]  # two GPUs: a new gang needs those of the old one
KINDS = ("replica", "controller", "door", "node", "cluster")
TRIES = 6  # of the command, after which a round has failed
NODES = [{"num_cpus": 3}, {"num_cpus": 3}]  # each could do it alone
MARK = "LONGTAKE_CHAOS"  # in the environment of everything that a round starts


@dataclass
class Round:
    """What one round did, and what was wrong with it."""

    kind: str
    killed_after_s: float = 0.0
    commands: int = 0  # how often the command was given
    seconds: float = 0.0
    finished_before: int = 0  # tasks, when something was killed
    repeated_tasks: int = 0  # attempts that did not succeed
    noticed_s: float | None = None  # of gangs: from the kill to the end of the attempt that it broke
    recovered_s: float | None = None  # from there to the first step of the next one
    faults: list[str] = field(default_factory=list)


class Chaos:
    """A storyboard, its undisturbed frames, and a folder to work in."""

    def __init__(self, folder: Path, *, board: str = BOARD, pools: str = POOLS, seed: int = 0) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.board, self.pools = folder / "film.yaml", folder / "pools.yaml"
        self.board.write_text(board)
        self.pools.write_text(pools)
        self.nodes = GANG_NODES if pools is GANG_POOLS else NODES
        started = time.monotonic()
        whole = self._undisturbed(folder / "whole", folder / "whole-frames")
        assert whole.code == 0, whole.told
        self.whole_s, self.frames = time.monotonic() - started, frames_of(folder / "whole-frames")
        self.job = whole.answer["job"]
        attempts = read_attempts(Store(str(folder / "whole")), self.job)
        self.work_s = max(a.ended_at for a in attempts) - min(a.started_at for a in attempts)
        if pools is GANG_POOLS:  # again with the prompts encoded: the first task waits for nothing but its gang
            for record in (folder / "whole").glob("artifacts/*/*.json"):
                if '"stage": "encode"' not in record.read_text():
                    record.unlink()
            shutil.rmtree(folder / "whole" / "frames", ignore_errors=True)
            known = {a.attempt_id for a in attempts}
            again = self._undisturbed(folder / "whole", folder / "again-frames")
            assert again.code == 0, again.told
            new = [a for a in read_attempts(Store(str(folder / "whole")), self.job) if a.attempt_id not in known]
            first = next(a for a in new if a.stage == "denoise")
            self.cold_start_s = first.info["first_step_at"] - first.queued_at
        shutil.rmtree(folder / "whole")

    def _undisturbed(self, store: Path, out: Path) -> Any:
        if self.nodes is NODES:
            return finish(start_farm(*self.command(store, out)))
        with emulated_cluster(self.nodes) as made:
            return finish(start_farm(*self.command(store, out, "--address", made.address)))

    def command(self, store: Path, out: Path, *more: str) -> tuple[str | Path, ...]:
        return ("render", self.board, "--store", store, "--pools", self.pools, "--out", out, "--json", *more)

    def round(self, kind: str, number: int) -> Round:
        done = Round(kind)
        store, out = self.folder / f"store{number}", self.folder / f"frames{number}"
        started, folders = time.monotonic(), left_folders()
        os.environ[MARK] = mark = f"{os.getpid()}-{number}"  # inherited by all that is started now
        try:
            if kind in GANG_KINDS:
                self._in_a_gang(kind, store, out, done)
            elif kind in ("node", "cluster"):
                self._on_a_cluster(kind, store, out, done)
            else:
                self._alone(kind, store, out, done)
            done.seconds = time.monotonic() - started
            self._audit(Store(str(store)), out, done)
            with contextlib.suppress(TimeoutError):
                wait_until("all processes to end", lambda: not left_processes(mark), timeout_s=70)
            done.faults += [f"left over: process {p.pid} {name_of(p)[:60]}" for p in left_processes(mark)]
            done.faults += [f"left over: {path}" for path in left_folders() - folders]
        except (AssertionError, subprocess.TimeoutExpired, TimeoutError) as e:
            done.faults.append(f"{type(e).__name__}: {e}")
        for process in left_processes(mark):
            end_tree(process.pid)
        shutil.rmtree(store, ignore_errors=True)
        shutil.rmtree(out, ignore_errors=True)
        return done

    def _alone(self, kind: str, store: Path, out: Path, done: Round) -> None:
        """The film on a Ray of its own."""
        process: subprocess.Popen[str] | None = start_farm(*self.command(store, out))
        done.commands = 1
        self._wait_to_kill(process, store, done)
        if process.poll() is None:
            tree = psutil.Process(process.pid).children(recursive=True)
            if kind == "door":
                kill(process)
                process = None
            else:
                wanted = "ray::Replica" if kind == "replica" else "ray::Controller"
                victims = [p for p in tree if wanted in name_of(p)]
                if victims:
                    self.rng.choice(victims).kill()
        self._carry_on(process, lambda: start_farm(*self.command(store, out)), done)

    def _in_a_gang(self, kind: str, store: Path, out: Path, done: Round) -> None:
        """One rank of a gang is killed, or stands still; the cluster has room for one gang."""
        with emulated_cluster(self.nodes) as made:
            argv = self.command(store, out, "--address", made.address)
            process, done.commands = start_farm(*argv), 1
            self._wait_to_kill(process, store, done)
            ranks = [p for p in left_processes(os.environ[MARK]) if name_of(p).startswith(("ray::Leader", "ray::Rank"))]
            is_busy = process.poll() is None and ranks
            if is_busy:
                victim = self.rng.choice(ranks)
                victim.kill() if kind == "rank" else victim.suspend()
            self._carry_on(process, lambda: start_farm(*argv), done)
            left = num_groups(made.address)
            done.faults += [f"{left} placement groups are left, for one gang"] if left > 1 else []
        broken = [a for a in read_attempts(Store(str(store)), self.job) if a.ended_at > self.killed_at]
        failed = [a for a in broken if a.stage == "denoise" and a.outcome == "failed"]
        if failed:
            done.noticed_s = failed[0].ended_at - self.killed_at
            later = [a for a in broken if a.started_at > failed[0].ended_at and a.info.get("first_step_at")]
            first = next((a for a in later if a.stage == "denoise"), None)
            done.recovered_s = first.info["first_step_at"] - failed[0].ended_at if first else None

    def _on_a_cluster(self, kind: str, store: Path, out: Path, done: Round) -> None:
        """The film on an emulated cluster of three nodes, of which one is lost, or all."""
        with emulated_cluster(NODES) as first:
            argv = self.command(store, out, "--address", first.address)
            process = start_farm(*argv)
            done.commands = 1
            self._wait_to_kill(process, store, done)
            if kind == "node":
                first.kill_node(self.rng.randrange(2))
                self._carry_on(process, lambda: start_farm(*argv), done)
                return
            first.kill_all()
            finish(process, timeout_s=180)
        with emulated_cluster(NODES) as second:
            again = self.command(store, out, "--address", second.address)
            self._carry_on(None, lambda: start_farm(*again), done)

    def _wait_to_kill(self, process: subprocess.Popen[str], store: Path, done: Round) -> None:
        """Some time between the first attempt and the end."""
        end = time.monotonic() + 60
        while not list(store.glob("jobs/*/attempts/*.json")) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        done.killed_after_s = self.rng.uniform(0, 0.9 * self.work_s)
        limit = time.monotonic() + done.killed_after_s
        while time.monotonic() < limit and process.poll() is None:
            time.sleep(0.05)
        records = [p for area in ("artifacts", "frames") for p in store.glob(f"{area}/*/*.json")]
        self.before, self.steps = (
            {p.stem for p in records},
            {p.name: last_step(p) for p in store.glob("checkpoints/*/*")},
        )
        self.killed_at = time.time()
        done.finished_before = len(self.before)

    def _carry_on(self, process: Any, again: Callable[[], Any], done: Round) -> None:
        """Give the command until the film is there."""
        for _ in range(TRIES):
            if process is None:
                process, done.commands = again(), done.commands + 1
            result = finish(process, timeout_s=240)
            if result.code == 0:
                return
            self.last_words, process = result.told[-600:], None
        raise AssertionError(f"the film did not come in {TRIES} commands: {self.last_words}")

    def _audit(self, store: Store, out: Path, done: Round) -> None:
        """Everything that must hold after a round."""
        done.faults += [] if frames_of(out) == self.frames else ["the frames differ from those of an undisturbed film"]
        job = read_job(store, self.job)
        plan = make_plan(
            job.film, job.models, numerics(load_pools(self.pools)), container="mp4", stills=True
        )  # fmt: skip
        done.faults += faults_of_job(store, self.job, plan, is_watched=True)
        attempts = read_attempts(store, self.job)
        again = [a for a in attempts if a.task in self.before and a.started_at > self.killed_at]
        done.faults += [f"{a.stage} of {a.label} was finished and ran again" for a in again]
        done.repeated_tasks = len(attempts) - sum(a.outcome == "succeeded" for a in attempts)
        for attempt in attempts:
            kept = self.steps.get(attempt.task, 0)
            began = attempt.info.get("resumed_at", 0)
            if attempt.outcome == "succeeded" and began < kept and attempt.started_at > self.killed_at:
                done.faults.append(f"denoise of {attempt.label} began at {began}, its checkpoint was at {kept}")
        root = Path(store.root)
        left = [*root.rglob("*.part"), *root.glob("checkpoints/*/*/*")]
        done.faults += [f"left over: {p.relative_to(root)}" for p in left]


LIVING_GROUPS = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
print(sum(g["state"] != "REMOVED" for g in ray.util.placement_group_table().values()))
"""


def num_groups(address: str) -> int:
    """Placement groups of a cluster that hold, or ask for, something."""
    command = [sys.executable, "-c", LIVING_GROUPS, address]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()[-1])


def _told(what: str, seconds: float | None) -> str:
    return "" if seconds is None else f", {what} {seconds:.1f} s"


def last_step(folder: Path) -> int:
    """The step that a task's newest checkpoint has reached."""
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    return int(names[-1].split("-")[0]) if names else 0


def frames_of(folder: Path) -> list[bytes]:
    return [p.read_bytes() for p in sorted(folder.glob("*.png"))]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def left_processes(mark: str) -> list[psutil.Process]:
    """Processes that were started by a round, and by nobody else."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_other = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if is_other and process.environ().get(MARK) == mark:
                found.append(process)
    return found


def left_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("longtake-*"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gangs", action="store_true", help="of two ranks, which break")
    parser.add_argument("--only", choices=(*KINDS, *GANG_KINDS))
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    apart = tempfile.mkdtemp(prefix="c-")  # a short path, for sockets; nobody else's folders are counted as left over
    os.environ["TMPDIR"] = tempfile.tempdir = apart
    kinds = GANG_KINDS if args.gangs else KINDS
    what = {"board": GANG_BOARD, "pools": GANG_POOLS} if args.gangs else {}
    chaos, rounds = Chaos(folder, seed=args.seed, **what), []
    print(f"undisturbed: {chaos.whole_s:.1f} s, of work {chaos.work_s:.1f} s; {len(chaos.frames)} frames", flush=True)
    for number in range(args.rounds):
        done = chaos.round(args.only or kinds[number % len(kinds)], number)
        rounds.append(done)
        print(
            f"{number:3} {done.kind:<10} killed after {done.killed_after_s:5.1f} s, {done.finished_before:3} tasks "
            f"done; {done.commands} commands, {done.seconds:5.1f} s, {done.repeated_tasks} attempts in vain"
            f"{_told('noticed after', done.noticed_s)}{_told('recovered in', done.recovered_s)}: "
            f"{'; '.join(done.faults) or 'fine'}",
            flush=True,
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(apart, ignore_errors=True)
    bad = [r for r in rounds if r.faults]
    told = {kind: [r.seconds for r in rounds if r.kind == kind] for kind in kinds}
    gangs: dict[str, Any] = {}
    if args.gangs:
        gangs["cold_start_s"] = chaos.cold_start_s
        for kind in kinds:
            mine = [r for r in rounds if r.kind == kind and r.noticed_s is not None]
            gangs[f"{kind}: noticed_s"] = spread([r.noticed_s for r in mine if r.noticed_s is not None])
            gangs[f"{kind}: recovered_s"] = spread([r.recovered_s for r in mine if r.recovered_s is not None])
    save("chaos_gangs" if args.gangs else "chaos", gangs | {
        "rounds": len(rounds), "with_faults": len(bad), "undisturbed_s": chaos.whole_s,
        "seconds": {kind: spread(s) for kind, s in told.items() if s},
        "attempts_in_vain": spread([float(r.repeated_tasks) for r in rounds]),
    })  # fmt: skip
    return bool(bad)


if __name__ == "__main__":
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")
    sys.exit(main())
