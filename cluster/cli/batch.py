"""`farm batch`: a manifest of films, rendered by one farm, on a cluster (also as a Ray job) or on this machine.

The driver is thin: it reads rows, submits so many films at once, and writes a line for each that has ended. When it
dies, the controller goes on with what it has; the same command reads the results that are there and does the rest.
Films are jobs like any others, so their tasks are shared: a prompt that stands in many rows is encoded once, and
replicas keep their models.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.identity import this_process
from cluster.cli.answer import Answer
from cluster.cli.options import add_autoscaling, add_json, add_pools, add_store
from cluster.cli.stopping import StopRequest
from cluster.prepare import farm_name, models_of_shots, open_store, plan_job
from cluster.ray import Connection, check_cluster, check_this_machine, made_pools
from farm.clock import steady_time
from farm.errors import DamagedError, InputError, Problem, RenderError
from farm.film.film import container_of
from farm.film.manifest import STORYBOARD, Row, Template, read_manifest, storyboard_of, unused_columns
from farm.film.resolve import resolve
from farm.film.storyboard import parse_storyboard
from farm.models.checkpoint import find_checkpoint
from farm.plan.plan import Plan, tasks_to_run
from farm.pools.pools import Pool, load_pools, pools_as_json
from farm.states import ENDED
from farm.store.history import write_plan
from farm.store.jobs import Job, publish_film, read_warnings, write_job
from farm.store.journal import Watch, Wish, read_attempts, read_standing
from farm.store.results import Result, Results
from farm.store.store import Store

MOST_OPEN = 90  # films at once; a controller remembers 100 that have ended
POLL_S = 0.5
ASK_TIMEOUT_S, LOST_S = 300.0, 600.0  # planning against a distant store takes a while


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", help="a path or URI")
    add_store(parser)
    add_pools(parser)
    add_json(parser)
    parser.add_argument("--template", type=Path, metavar="FILE", help="a storyboard with {columns}")
    parser.add_argument("--results", metavar="URI", help="a folder; default: <store>/batches/<name of the manifest>")
    parser.add_argument("--address", metavar="A", help="a Ray cluster (default: $RAY_ADDRESS or a local Ray)")
    add_autoscaling(parser)
    parser.add_argument("--priority", type=int, default=50, metavar="N", help="0 to 100; default: 50")
    parser.add_argument("--max-open", type=int, default=48, metavar="N", help="films at once; default: 48")
    parser.add_argument("--again", action="store_true", help="also rows that have failed, or were canceled")


def run(args: argparse.Namespace, answer: Answer) -> int:
    """Exit code 0 where every row has its film, 3 where some have none."""
    if not 1 <= args.max_open <= MOST_OPEN:
        raise InputError(Problem(f"--max-open must be from 1 to {MOST_OPEN}, got {args.max_open}", "--max-open"))
    if not 0 <= args.priority <= 100:
        raise InputError(Problem(f"--priority must be from 0 to 100, got {args.priority}", "--priority"))
    rows = read_manifest(args.manifest)
    template = None
    if args.template:
        try:
            template = Template(args.template.read_bytes(), file=str(args.template))
        except OSError as e:
            raise InputError(Problem(f"--template cannot be read: {e.strerror}", file=str(args.template))) from None
    whole = [row for row in rows if not row.fault]
    for row in whole[:1]:  # a template that names what is not there is the batch's fault, not a row's
        storyboard_of(row, template)
    if unused := unused_columns(rows, template):
        by = f"the template {args.template}" if template else f"a manifest of column {STORYBOARD!r}"
        more = " ..." if len(unused) > 8 else ""
        answer.warn([Problem(f"columns that {by} does not use: {', '.join(unused[:8])}{more}", file=args.manifest)])
    store = open_store(args.store)
    store.check()
    address = args.address or os.environ.get("RAY_ADDRESS") or None
    pools = load_pools(args.pools) if args.pools else None
    if address is None:
        pools = pools or made_pools(on_cluster=False)
        check_this_machine(pools, args.pools)
    store.create()
    with closing(Connection(address, pools or {})) as connection, StopRequest() as stop:
        pools = pools or made_pools(on_cluster=True)
        check_cluster(pools, args.pools, autoscaling=args.autoscaling)
        driver = Driver(args, store, pools, template, rows)
        counts = driver.run(stop, is_local=connection.is_local)
    warnings = answer.data["warnings"]
    answer.data = {"results": driver.results.uri, "rows": len(rows), **counts, "warnings": warnings}
    told_counts = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    print(f"farm: {len(rows)} rows: {told_counts}; results in {driver.results.uri}", file=sys.stderr)
    if sum(counts.values()) < len(rows):
        return answer.finish(130)
    return answer.finish(0 if set(counts) <= {"completed"} else 3)


@dataclass
class Open:
    """A film that is being rendered."""

    row: Row
    wish: Wish
    film_s: float
    since: float
    storyboard: str


class Driver:
    """See the module."""

    def __init__(
        self, args: argparse.Namespace, store: Store, pools: dict[str, Pool], template: Template | None, rows: list[Row]
    ) -> None:
        self.args, self.store, self.pools, self.template = args, store, pools, template
        self.farm, self.uri = farm_name(store, pools_as_json(pools))
        name = name_of(args.manifest, args.template)
        self.results, self.rows = Results(args.results or f"{self.uri.rstrip('/')}/batches/{name}", rows), rows
        manifest = Path(args.manifest)
        self.beside = args.template.parent if args.template else manifest if manifest.is_dir() else manifest.parent
        self.door = this_process().name
        self.controller: Any = None
        self.watches: dict[str, Watch] = {}  # of others' leases, by job

    def run(self, stop: StopRequest, *, is_local: bool) -> dict[str, int]:
        """Render what has no result yet. Returns how many rows ended in which way, those of earlier runs included."""
        rows, known = self.rows, self.results.done()
        again = {"failed", "canceled"} if self.args.again else set()
        ended = {row.number: known.get((row.number, self._hash_of(row)), "") for row in rows}
        left = [row for row in reversed(rows) if ended[row.number] in {"", *again}]
        open_films: dict[str, Open] = {}
        counts = {number: status for number, status in ended.items() if status not in {"", *again}}
        if counts:
            print(f"farm: {len(counts)} of {len(rows)} rows have results", file=sys.stderr)
        try:
            while (left or open_films) and not stop.asked:
                made = self._ended(open_films)
                while left and len(open_films) < self.args.max_open and not stop.asked:
                    begun = self._begin(left.pop(), open_films)
                    made += [begun] if begun is not None else []
                counts |= {result.row: result.status for result in made}
                self.results.rows += made
                self.results.flush_in_time()
                time.sleep(POLL_S)
        finally:
            self.results.flush()
        if is_local and self.controller is not None:
            import ray

            with suppress(ray.exceptions.RayError):
                self._ask("close")
        return dict(Counter(counts.values()))

    def _begin(self, row: Row, open_films: dict[str, Open]) -> Result | None:
        """Submit a row's film; its result where there is one already: a fault of the row, or a film that exists."""
        told = self._hash_of(row)
        try:
            job, plan, container, files = self._plan(row)
            write_job(self.store, job, files)
        except InputError as e:
            return Result(row.number, "refused", error=str(e)[:4000], storyboard=told)
        except (ArithmeticError, LookupError, TypeError, ValueError) as e:  # whatever a table may hold
            return Result(row.number, "refused", error=f"{type(e).__name__}: {e}"[:4000], storyboard=told)
        wish = Wish(job.id, container, False, self.farm, self.args.priority, at=steady_time())
        film_s = job.film.num_delivered / job.film.output_fps
        write_plan(self.store, job, plan, variant=container)
        film = Open(row, wish, film_s, steady_time(), told)
        if not tasks_to_run(plan.tasks, plan.targets, self.store.has):
            with suppress(DamagedError):  # which is then made again
                path = publish_film(self.store, job, plan)
                return self._result(film, {"status": "completed", "film": path, "errors": []})
        open_films[f"{wish.name}#{row.number}"] = film
        self._submit(wish)
        return None

    def _hash_of(self, row: Row) -> str:
        """Of a row's storyboard; of its values where it has none that could be read."""
        try:
            text = storyboard_of(row, self.template)
        except (InputError, ArithmeticError, LookupError, TypeError, ValueError):
            text = repr(sorted(row.values.items(), key=lambda item: str(item[0])))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def _plan(self, row: Row) -> tuple[Job, Plan, str, dict[str, Path]]:
        text = storyboard_of(row, self.template)
        draft = parse_storyboard(text.encode(), file=str(self.beside / row.place.rsplit("/", 1)[-1]))
        checkpoint = find_checkpoint(draft.top.model, beside=self.beside) if draft.top else None
        others, problems = models_of_shots(draft, self.beside)
        resolved = resolve(draft, checkpoint, others=others, model_problems=problems)
        film, models = resolved.film, resolved.models
        container = container_of("", film.codec)
        job, plan, _ = plan_job(film, models, text, self.pools, container=container, warnings=resolved.warnings)
        return job, plan, container, resolved.files

    def _submit(self, wish: Wish) -> None:
        """Hand a film to the controller. One that another farm's drives is waited for, and taken over when that has
        given no sign of life for long.

        Raises:
            RenderError: no controller answers.
        """
        import ray

        from actors.controller import held_from_json

        end, watch = time.monotonic() + LOST_S, self.watches.get(wish.job)
        stale = asdict(watch.held) if watch and watch.look(watch.held, time.monotonic()) else None
        while True:
            try:
                told = self._ask("submit", asdict(wish), door=self.door, stale=stale)
                if told is None:
                    self.watches.pop(wish.job, None)
                else:
                    held, now = held_from_json(told), time.monotonic()
                    self.watches.setdefault(wish.job, Watch(held, now)).look(held, now)
                return
            except (
                ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError
            ) as e:  # fmt: skip  # Ray starts it again
                if time.monotonic() > end:
                    raise RenderError(f"the farm's controller does not answer: {e}") from e
                time.sleep(POLL_S)

    def _ended(self, open_films: dict[str, Open]) -> list[Result]:
        """Take out what has ended."""
        import ray

        if not open_films:
            return []
        names = sorted({film.wish.name for film in open_films.values()})
        try:
            views: dict[str, dict[str, Any]] = self._ask("statuses", names)
        except (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError, ray.exceptions.GetTimeoutError):
            return []
        found = []
        for key, film in list(open_films.items()):
            view = views[film.wish.name]
            if view["status"] in ("unknown", "lost"):  # a new controller, or it ended long ago
                view = self._by_the_store(film)
            if view["status"] in ENDED:
                del open_films[key]
                found.append(self._result(film, view))
        return found

    def _by_the_store(self, film: Open) -> dict[str, Any]:
        standing = read_standing(self.store, film.wish.job)
        if standing.state in ENDED and standing.at >= film.since:
            path = f"films/{film.wish.job}/film.{film.wish.container}"
            return {"status": standing.state, "errors": [standing.reason], "film": self.store.place(path)}
        self._submit(film.wish)
        return {"status": "queued"}

    def _result(self, film: Open, view: dict[str, Any]) -> Result:
        attempts = read_attempts(self.store, film.wish.job)
        is_good = view["status"] == "completed"
        cost = sum((a.ended_at - a.started_at) / 3600 * a.price_per_hour for a in attempts)
        return Result(
            film.row.number, view["status"], film.wish.job, view["film"] if is_good else "",
            film.film_s if is_good else 0.0, steady_time() - film.since, sum(a.gpu_s for a in attempts), cost,
            "" if is_good else "; ".join(view["errors"])[:4000], film.storyboard,
            "; ".join(w.message for w in read_warnings(self.store, film.wish.job))[:4000],
        )  # fmt: skip

    def _ask(self, method: str, *values: Any, **named: Any) -> Any:
        import ray

        from actors.controller import start_controller

        if self.controller is None:
            self.controller = start_controller(self.farm, self.uri, pools_as_json(self.pools), adopts=True)
        return ray.get(getattr(self.controller, method).remote(*values, **named), timeout=ASK_TIMEOUT_S)


def name_of(manifest: str, template: Path | None) -> str:
    """Of a batch: the same command has the same results."""
    told = hashlib.sha256(manifest.encode() + b"\n" + (template.read_bytes() if template else b"")).hexdigest()
    stem = manifest.rstrip("/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    return f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in stem)[:60]}-{told[:8]}"
