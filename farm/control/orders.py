"""Orders: what somebody has asked of a job, read from the store and carried out between two ticks of the clock."""

from __future__ import annotations

from farm.control.jobs import Jobs
from farm.control.lead import Lead
from farm.states import ENDED
from farm.store.journal import new_orders


async def follow_orders(jobs: Jobs, lead: Lead) -> None:
    """Carry out what was asked of a job since the last look."""
    known = lead.journal.standing.orders | {r[2].get("order", "") for r in lead.records}
    for name, told in await jobs.io(new_orders, jobs.store, lead.job, known):
        if lead.job not in jobs.leads or lead.state in ENDED:
            return
        kind, by = told["order"], f"by order of {told['by']}"
        if kind == "pause" and lead.state in ("queued", "active"):
            jobs.pause(lead, f"paused {by}", by_farm=False, order=name)
        elif kind == "pause" and lead.paused_by_farm:
            lead.paused_by_farm = False
            lead.note(order=name, by_farm=False)
        elif kind == "resume" and lead.state in ("paused", "pausing"):
            jobs.resume(lead, f"resumed {by}", order=name)
        elif kind == "cancel" and lead.state != "canceling":
            jobs.cancel(lead, f"canceled {by}", keep=False, order=name)
        elif kind == "requeue" and lead.state != "canceling":
            forgiven = await _requeue(jobs, lead, everything=told["everything"])
            lead.note(order=name, forgiven=forgiven)
        elif kind == "priority":
            for rendering in jobs.renderings_of(lead.job):
                jobs.dispatcher.set_priority(rendering.wish.name, told["priority"])
            lead.note(order=name, priority=told["priority"])
        else:  # it asks for what is so already
            lead.note(order=name)
    await jobs.write(lead)


async def _requeue(jobs: Jobs, lead: Lead, *, everything: bool) -> list[str]:
    """Give failed tasks another chance; run again what was done, if that is asked. Returns forgiven attempts."""
    forgiven = []
    for rendering in jobs.renderings_of(lead.job):
        rendering.errors.clear()
        rendering.num_input_errors = 0
        for key in jobs.dispatcher.requeue_failed(rendering.wish.name):
            forgiven += [a.attempt_id for a in jobs.work.tries.pop(key, [])]
        if everything:
            done = {k for k in rendering.plan.tasks if not jobs.dispatcher.is_pending(k)}
            for key in sorted(done):
                await lead.patiently(jobs.store.forget, rendering.plan.tasks[key])
            rendering.run_again(done)
            jobs.dispatcher.revive(rendering.wish.name, rendering.plan.tasks, done)
    jobs.work.dispatch()
    return forgiven
