"""The command line: `farm render|plan|models|schema|report|doctor`, and in commands.py what looks at jobs and stores.

Exit codes: 0 done; 2 the input is at fault; 3 the render failed; 130 interrupted. Progress and faults go to standard
error; `--json` prints one object as the last line of standard output, also on failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from actors.identity import is_dead, this_process
from farm.errors import InputError, Problem, RenderError, StoreError
from farm.jobs import publish_film, read_seams
from farm.journal import Held, Watch, Wish, look_at_lease, read_standing
from farm.plan import tasks_to_run
from farm.pools import load_pools, pools_as_json
from farm.states import ENDED
from farm.store import Store
from farm.storyboard import json_schema
from farm.why import reasons, summary

from . import serve
from .answer import Answer
from .commands import add_commands
from .deliver import Target, deliver, read_target
from .hardware import Connection
from .order import (
    Order,
    check_cluster,
    check_this_machine,
    farm_name,
    keep_job,
    look_again,
    open_store,
    read_order,
    with_requeued,
)
from .stopping import StopRequest
from .tables import model_rows, model_table, plan_table

NEWS_S = 0.5  # how long one question to the controller waits for news
STOP_TIMEOUT_S = 10.0  # for replicas to end their step after Ctrl-C
CONTROLLER_TIMEOUT_S = 60.0
SUBMIT_TIMEOUT_S = 3600.0  # planning a long film against a distant store takes a while
FOLLOW_S = 1.0  # between two looks at a job that another controller renders
NOTHING_RUN: dict[str, Any] = {
    "to_run": 0, "not_needed": 0, "run": 0, "retried": 0, "stage_s": {}, "first_step_at": None, "film": "",
    "errors": [],
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    try:
        args = parser.parse_args(words)
    except SystemExit as e:
        return Answer(as_json=True).fail(2, []) if e.code == 2 and "--json" in words else int(e.code or 0)
    answer = Answer(as_json=getattr(args, "json", False))
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return int(args.run(args, answer))
    except InputError as e:
        return answer.fail(2, e.problems)
    except (RenderError, StoreError, OSError) as e:
        return answer.fail(3, [Problem(str(e))])
    except KeyboardInterrupt:
        return answer.fail(130, [Problem("interrupted; the same command goes on where it stopped")])
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farm", description="A render farm for AI video: a storyboard becomes a film."
    )
    parser.add_argument("--version", action="version", version=f"longtake {metadata.version('longtake')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, *, storyboard: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if storyboard:
            sub.add_argument("storyboard", type=given_path, metavar="STORYBOARD")
            sub.add_argument(
                "--model", help="render with this model instead: builtin, a folder, or org/name[@revision]"
            )
            sub.add_argument(
                "--pools", type=given_path, metavar="FILE", help="which stages run on which hardware (YAML)"
            )
            sub.add_argument(
                "--store",
                type=given,
                metavar="URI",
                help="where finished work lives (default: $LONGTAKE_STORE or .longtake)",
            )
            sub.add_argument("--only", action="append", metavar="SHOT", help="this shot alone; may be given again")
            sub.add_argument("--draft", action="store_true", help="a quarter of the steps at half the size")
            sub.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        return sub

    render = command("render", run_render, "render a storyboard to a film", storyboard=True)
    render.add_argument(
        "--out", type=given, metavar="FILE_OR_FOLDER", help="the film's file, or a folder for PNG frames"
    )
    render.add_argument(
        "--address", type=given, metavar="A", help="a Ray cluster to render on (default: $RAY_ADDRESS or a local Ray)"
    )
    command("plan", run_plan, "show what a storyboard would need, without rendering", storyboard=True)
    command("schema", run_schema, "print the storyboard's JSON Schema")
    models = command("models", run_models, "list the models, or examine a checkpoint folder")
    models.add_argument("path", nargs="?", metavar="PATH")
    models.add_argument("--json", action="store_true", help="print JSON")
    report = command("report", run_report, "draw the report of a job")
    report.add_argument("job", metavar="JOB")
    report.add_argument("--store", type=given, metavar="URI")
    add_commands(command)
    serve.add_commands(command)
    doctor = command("doctor", run_doctor, "check this machine, and what the pools ask for")
    doctor.add_argument("--pools", type=given_path, metavar="FILE")
    return parser


def given(text: str) -> str:
    """An option's value; an empty one comes from a shell variable that was not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def given_path(text: str) -> Path:
    return Path(given(text))


# -- farm render


def run_render(args: argparse.Namespace, answer: Answer) -> int:
    target = read_target(args.out)
    address = args.address or os.environ.get("RAY_ADDRESS") or None
    with ExitStack() as stack:
        connection = None
        if address and not args.pools:  # pools are then made for the cluster's hardware, and keys depend on them
            connection = stack.enter_context(closing(Connection(address, {})))
        order = read_order(args, answer, target=target, on_cluster=connection is not None)
        for warning in order.warnings:
            print(f"farm: warning: {warning}", file=sys.stderr)
        stale = None
        order = with_requeued(order)
        if order.missing and address is None:
            held = look_at_lease(order.store, order.job.id)
            if held is not None and not is_dead(held.owner):  # another `farm render` on this store
                stale = follow(order, held)
                order = look_again(order, answer)
        if order.missing:
            if address is None:
                check_this_machine(order.pools, order.pools_file)
                order.store.create()
            connection = connection or stack.enter_context(closing(Connection(address, order.pools)))
            view = render_missing(order, connection, stale=stale)
            total = answer.data["tasks"]["total"]
            reused = total - view["to_run"] + view["not_needed"]
            answer.data["tasks"] |= {"run": view["run"], "reused": reused, "retried": view["retried"]}
            answer.data["stage_s"] = {stage: round(s, 4) for stage, s in view["stage_s"].items()}
            answer.data["first_step_at"] = view["first_step_at"]
            if view["status"] != "completed":
                return tell_unfinished(order, view, answer)
            film = view["film"]
        else:
            order.store.create()
            keep_job(order)
            film = publish_film(order.store, order.job, order.plan)
    try:
        path = deliver(target, order.store, order.plan, film)
    except OSError as e:
        raise RenderError(f"the film is finished ({film}), but could not be written to {args.out}: {e}") from e
    report = try_to_draw_report(order.store, order.job.id)
    for shot, told in zip(order.plan.shots, answer.data["shots"], strict=True):
        told["clip"] = order.store.place(
            f"films/{order.job.id}/shots/{shot.id}.{order.plan.tasks[shot.clip].extension}"
        )
    answer.data |= {"status": "completed", "film": path, "seams": read_seams(order.store, order.plan)}
    ran, reused = answer.data["tasks"]["run"], answer.data["tasks"]["reused"]
    print(
        f"farm: {path}: {answer.data['frames']} frames, {answer.data['seconds']:.2f} s; {ran} tasks run, {reused} "
        f"reused; job {order.job.id}, report {report}",
        file=sys.stderr,
    )
    return answer.finish(0)


def tell_unfinished(order: Order, view: dict[str, Any], answer: Answer) -> int:
    tasks = order.plan.tasks
    done = len(tasks) - len(tasks_to_run(tasks, order.plan.targets, order.store.has))
    report = try_to_draw_report(order.store, order.job.id)
    left = f"{done} of {len(tasks)} tasks are in the store, and the same command goes on from there; report {report}"
    if view["status"] == "canceled":
        return answer.fail(130, [Problem(f"{view.get('reason') or 'interrupted'}; {left}")])
    return answer.fail(3, [*(Problem(e) for e in view["errors"]), Problem(left)])


def render_missing(order: Order, connection: Connection, *, stale: Held | None) -> dict[str, Any]:
    """Run what is missing. Returns the controller's last view of the rendering.

    Args:
        stale: the lease of another controller that gives no more sign of life.
    Raises:
        InputError: a pool asks for more than a fixed cluster has; nothing was written.
        RenderError: the controller or Ray itself failed.
    """
    import ray

    try:
        check_cluster(order.pools, order.pools_file)
        order.store.create()
        keep_job(order)
        with StopRequest() as stop:  # after ray.init, which installs handlers of its own
            return drive(order, stop, connection, stale=stale)
    except ray.exceptions.RayError as e:
        reason = str(e).strip().splitlines()[-1]
        raise RenderError(f"the farm's controller failed: {reason}; the same command goes on from what exists") from e


def drive(order: Order, stop: StopRequest, connection: Connection, *, stale: Held | None) -> dict[str, Any]:
    """Submit the job to the controller, show progress until it ends, and pass on Ctrl-C and SIGTERM."""
    import ray

    from actors.controller import held_from_json, start_controller

    from .progress import show_progress

    pools = pools_as_json(order.pools)
    name, uri = farm_name(order.store, pools)
    wish = Wish(order.job.id, order.container, bool(order.plan.stills), farm=name)
    controller = start_controller(name, uri, pools, adopts=not connection.is_local)
    lost_at: float | None = None  # when the controller stopped answering
    door = this_process().name

    def ask(method: str, *values: Any, timeout_s: float = CONTROLLER_TIMEOUT_S, **options: Any) -> Any:
        return ray.get(getattr(controller, method).remote(*values, **options), timeout=timeout_s)

    view: dict[str, Any] = {"status": "unknown"}
    with show_progress(order.job.film.title) as show:
        while view["status"] not in ENDED and not stop.asked:
            try:
                if view["status"] in ("unknown", "lost"):
                    told = {"stale": asdict(stale) if stale else None, "door": door}
                    held = ask("submit", asdict(wish), timeout_s=SUBMIT_TIMEOUT_S, **told)
                    stale = follow(order, held_from_json(held), stop) if held else None
                    view = {"status": "unknown" if held else "queued"}
                    continue
                view = ask("view", wish.name, wait_s=NEWS_S)
                lost_at = None
                if "done" in view:
                    show(view)
            except (ray.exceptions.RayActorError, ray.exceptions.ActorUnavailableError):  # Ray starts it again
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > CONTROLLER_TIMEOUT_S:
                    raise
                view = {"status": "unknown"}
                time.sleep(NEWS_S)
    if stop.asked and view["status"] not in ENDED:
        view = leave(ask, wish.name, door, view)
    if connection.is_local:
        with suppress(ray.exceptions.RayError):  # it may have died after its work
            ask("close")
            ray.kill(controller)
    return view


def leave(ask: Callable[..., Any], name: str, door: str, view: dict[str, Any]) -> dict[str, Any]:
    """Stop waiting for a rendering; without another door it ends between two steps, with its state kept."""
    import ray

    left: dict[str, Any] = {**NOTHING_RUN, **view, "status": "canceled"}
    if view["status"] == "unknown":
        return left
    with suppress(ray.exceptions.RayError):  # a controller that dies now leaves the same behind
        ask("cancel", name, door)
        end = time.monotonic() + STOP_TIMEOUT_S
        while not ask("is_quiet", name) and time.monotonic() < end:
            time.sleep(0.1)
        last = ask("view", name)
        left = {**left, **last, "status": last["status"] if last["status"] == "completed" else "canceled"}
    return left


def follow(order: Order, held: Held, stop: StopRequest | None = None) -> Held | None:
    """Wait while another controller renders this job.

    Returns its lease where it has given no sign of life for long; None where it has ended or given the job back.
    """
    print(f"farm: job {order.job.id} is being rendered by {held.owner.name}; following", file=sys.stderr)
    watch, told = Watch(held, time.monotonic()), ""
    while not (stop and stop.asked):
        time.sleep(FOLLOW_S)
        standing = read_standing(order.store, order.job.id)
        now = look_at_lease(order.store, order.job.id, standing)
        if now is None:
            return None
        if is_dead(now.owner) or watch.look(now, time.monotonic()):
            return now
        if f"{standing.state}: {standing.reason}" != told:
            told = f"{standing.state}: {standing.reason}"
            print(f"farm: job {order.job.id} is {told}", file=sys.stderr)
    return None


def draw_report(store: Store, job: str) -> str:
    from dashboards.report import make_report

    return store.publish(f"films/{job}/report.html", make_report(store, job).encode())


def try_to_draw_report(store: Store, job: str) -> str:
    """Its place, or why there is none: what was rendered matters more."""
    try:
        return draw_report(store, job)
    except (OSError, StoreError) as e:
        return f"could not be drawn: {e}"


# -- the other commands


def run_plan(args: argparse.Namespace, answer: Answer) -> int:
    order = read_order(args, answer, target=Target())
    answer.data["status"] = "planned"
    for warning in order.warnings:
        print(f"farm: warning: {warning}", file=sys.stderr)
    why = summary(order.plan, reasons(order.store, order.job, order.plan, order.missing))
    if args.json:
        answer.data["why"] = why
        answer.data["gangs"] = {
            name: {**asdict(g.degrees), "step_s": g.step_s, "compute_s": g.compute_s, "exchange_s": g.exchange_s}
            for name, g in order.gangs.items()
        }
        return answer.finish(0)
    for line in plan_table(order.job, order.plan, order.missing, why):
        print(line)
    for name, gang in order.gangs.items():
        print(f"\npool {name}: {order.pools[name].ranks} ranks as {gang} (an estimate; farm/parallel.py says by what)")
    return 0


def run_schema(args: argparse.Namespace, answer: Answer) -> int:
    print(json_schema())
    return 0


def run_models(args: argparse.Namespace, answer: Answer) -> int:
    rows = model_rows(args.path)
    if args.json:
        print(json.dumps({"models": rows}))
        return 0
    for line in model_table(rows, is_one=args.path is not None):
        print(line)
    return 0


def run_report(args: argparse.Namespace, answer: Answer) -> int:
    store = open_store(args.store)
    print(draw_report(store, args.job))
    return 0


def run_doctor(args: argparse.Namespace, answer: Answer) -> int:
    from .doctor import examine

    return examine(load_pools(args.pools) if args.pools else None)


if __name__ == "__main__":
    sys.exit(main())
