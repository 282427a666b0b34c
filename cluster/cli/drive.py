"""A job that is driven to its end by a controller on Ray, seen from the door that waits for it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from actors.identity import is_dead, this_process
from cluster.cli.order import Order, keep_job
from cluster.cli.stopping import StopRequest
from cluster.prepare import farm_name
from cluster.ray import Connection, check_cluster
from farm.errors import RenderError
from farm.pools.pools import pools_as_json
from farm.states import ENDED
from farm.store.journal import Held, Watch, Wish, look_at_lease, read_standing

NEWS_S = 0.5  # how long one question to the controller waits for news
STOP_TIMEOUT_S = 10.0  # for replicas to end their step after Ctrl-C
CONTROLLER_TIMEOUT_S = 60.0
HUNG_S = 600.0  # without an answer, before it is given up
SUBMIT_TIMEOUT_S = 3600.0  # planning a long film against a distant store takes a while
FOLLOW_S = 1.0  # between two looks at a job that another controller renders
NOTHING_RUN: dict[str, Any] = {
    "to_run": 0, "not_needed": 0, "run": 0, "retried": 0, "stage_s": {}, "first_step_at": None, "film": "",
    "errors": [],
}  # fmt: skip


def render_missing(
    order: Order, connection: Connection, *, stale: Held | None, autoscaling: str = "auto"
) -> dict[str, Any]:
    """Run what is missing. Returns the controller's last view of the rendering.

    Args:
        stale: the lease of another controller that gives no more sign of life.
    Raises:
        InputError: a pool asks for what the cluster can never have; nothing was written.
        RenderError: the controller or Ray itself failed.
    """
    import ray

    try:
        if not connection.is_local:
            check_cluster(order.pools, order.pools_file, autoscaling=autoscaling)
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
    from cluster.cli.progress import show_progress

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
            except ray.exceptions.GetTimeoutError:  # stopped for a while, or a machine that is overloaded
                lost_at = lost_at or time.monotonic() - CONTROLLER_TIMEOUT_S
                if time.monotonic() - lost_at > HUNG_S:
                    raise RenderError(
                        f"the farm's controller has not answered for {HUNG_S:g} s; the same command goes on from what "
                        "exists"
                    ) from None
                print("farm: the controller does not answer; waiting", file=sys.stderr)
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
