"""
What an outcome makes of a job: 32_outcomes.sql.

`_decide` is the one place for the rules of abort, release and retry.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, timedelta
from typing import Any

import psycopg

from pyprocrastinate_testing import line
from pyprocrastinate_testing.defer import add
from pyprocrastinate_testing.limits import check_keys, check_name, check_time
from pyprocrastinate_testing.retry_policy import policy_of, retry_at
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import Json, field_text, iso, json_text, present, to_int, to_time

_RESULT_BYTES = 65536


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a run's job: its status, or why the outcome is refused; and where it goes if it waits again."""

    status: str | None = None
    retry_at: datetime | None = None
    place: dict[str, Any] = dataclasses.field(default_factory=dict)
    counts: int = 1
    refused: str | None = None
    message: str | None = None


def end_runs(tables: Tables, outcomes: Json, ended: list[Job], at: datetime) -> list[Json]:
    """End the runs that are not plain successes; return the verdicts, and add the jobs whose locks are free now."""
    decided: list[tuple[Job, Json, Decision]] = []
    for outcome in outcomes:
        job = tables.job.get(outcome.get("id"))
        if job and job.status == "doing" and job.token == outcome.get("token"):
            decided.append((job, outcome, _decide(tables, outcome, job, at)))
    # With a queueing lock each goes back on its own, because the one before it may have taken that lock.
    last = [entry for entry in decided if entry[2].status == "todo" and entry[0].queueing_lock]
    first = [entry for entry in decided if entry not in last]
    verdicts = []
    for job, outcome, decision in [*first, *sorted(last, key=lambda entry: entry[0].id)]:
        status, error = decision.status, _error(tables, outcome.get("error"))
        if status == "todo":
            event = "deferred_for_retry" if decision.counts else None
            status = put_back(tables, job, at, decision, event, error)
        elif status is not None:
            changes = {"error": error, "result": _result(outcome)}
            tables.end(job, status, at, keep=outcome.get("keep") is not False, **changes)
        if status is not None:
            ended.append(job)
        verdicts.append(_verdict(job, decision, status))
    return verdicts


def _verdict(job: Job, decision: Decision, status: str | None) -> Json:
    return present(
        id=job.id,
        token=job.token,
        verdict="refused" if decision.refused else "ok",
        sqlstate=decision.refused,
        message=decision.message,
        status=status,
        retry_at=iso(decision.retry_at) if status == "todo" else None,
    )


def put_back(
    tables: Tables, job: Job, at: datetime, decision: Decision, event: str | None, error: Json, rescued: int = 0
) -> str:
    """
    Return a running job to the queue and say todo.

    Where its queueing lock is taken, end it as superseded and say failed, or cancelled if it never ran.
    """
    attempts = job.attempts + decision.counts
    if line.waiting(tables, job.queueing_lock):
        status = "failed" if attempts else "cancelled"
        superseded = {"class": "Superseded", "message": "another job with the same queueing lock is waiting"}
        token = None if rescued else job.token
        rescues = job.rescues + rescued
        tables.end(job, status, at, counts=decision.counts, error=superseded, token=token, rescues=rescues)
        return status
    place = {"lock": job.lock, "queue": job.queue} | decision.place
    back = tables.put(
        job,
        status="todo",
        token=None if rescued else job.token,
        worker_id=None,
        started_at=None,
        abort_requested=False,
        attempts=attempts,
        rescues=job.rescues + rescued,
        # given back for a moment, it was due when it was due
        scheduled_at=(decision.counts and decision.retry_at) or job.scheduled_at,
        error=without_traceback(error) if decision.counts else job.error,
        **(decision.place | waits(decision.retry_at, at, place["lock"], attempts)),
    )
    if event is not None:
        detail = present(retry_at=iso(decision.retry_at), error=error)
        tables.note(job, event, at, worker_id=job.worker_id, started_at=job.started_at, detail=detail)
    tables.wake(back.queue)
    return "todo"


def waits(due: datetime | None, at: datetime, lock: str | None, attempts: int) -> dict[str, Any]:
    """Tell until when a job waits that goes (back) into the queue, and whether it holds its lock back meanwhile."""
    later = due is not None and due > at
    return {"until": due if later else None, "holds": later and lock is not None and attempts > 0}


def without_traceback(error: Json) -> Json:
    """Return what a waiting job keeps of its last error."""
    return error and {key: value for key, value in error.items() if key != "traceback"}


def _decide(tables: Tables, outcome: Json, job: Job, at: datetime) -> Decision:
    match outcome.get("outcome"):
        case "succeeded":
            return Decision(
                status="succeeded",
                message="the result is larger than 64 KiB and is not stored" if _huge(outcome) else None,
            )
        case "released":
            # What is to be aborted must not start anew.
            if job.abort_requested:
                return Decision(status="aborted")
            return Decision(status="todo", counts=0)
        case "unknown_task":
            if job.abort_requested:
                return Decision(status="aborted")
            if not _known_elsewhere(tables, job, at):
                return Decision(status="failed")
            # Not at once, or the worker that does not know it would be the first to fetch it again.
            return Decision(status="todo", counts=0, retry_at=at + timedelta(seconds=1))
        case "failed" | "aborted" as status:
            # What a user asked to stop is never retried, however it ended.
            if job.abort_requested or (status == "aborted" and outcome.get("reason") != "shutdown"):
                return Decision(status=status)
            decision = _decide_retry(tables, outcome, job, at)
            if decision.refused or decision.retry_at:
                return decision
            return Decision(status=status)
        case _:
            return Decision(refused="22023", message="unknown outcome")


def _known_elsewhere(tables: Tables, job: Job, at: datetime) -> bool:
    return any(
        worker.id != job.worker_id and job.task in worker.tasks and worker.serves(job.queue) and worker.lives(at)
        for worker in tables.worker.values()
    )


def _decide_retry(tables: Tables, outcome: Json, job: Job, at: datetime) -> Decision:
    """Tell when and where a failed run is retried: the decision sent with it, or the policy."""
    try:
        if "retry" in outcome:
            return _as_told(outcome["retry"], at)
        policy = policy_of(tables, job.retry, job.task, job.worker_id)
        when = retry_at(policy, job.attempts - job.budget_from, outcome.get("error"), at)
        return Decision(status="todo", retry_at=when)
    except psycopg.Error as error:
        # A decision of user code: only this outcome suffers.
        return Decision(refused=error.sqlstate, message=error.diag.message_primary)


def _as_told(told: Json, at: datetime) -> Decision:
    if told is None:
        return Decision()
    check_keys("a retry decision", told, ("at", "in", "priority", "queue", "lock"))
    when = at
    if (instant := field_text(told, "at")) is not None:
        when = to_time(instant)
    elif (seconds := field_text(told, "in")) is not None:
        when = add(at, timedelta(seconds=float(seconds)))
    place: dict[str, Any] = present(queue=field_text(told, "queue"), lock=field_text(told, "lock"))
    if (priority := field_text(told, "priority")) is not None:
        place["priority"] = -to_int(-to_int(priority))
    check_time(when)
    check_name("queue", place.get("queue"), 128)
    check_name("lock", place.get("lock"), 512)
    return Decision(status="todo", retry_at=when, place=place)


def _huge(outcome: Json) -> bool:
    return "result" in outcome and len(json_text(outcome["result"]).encode()) > _RESULT_BYTES


def _result(outcome: Json) -> Json:
    return None if _huge(outcome) else outcome.get("result")


def clip(text: str, size: int, *, tail: bool = False) -> str:
    """Keep as many whole characters of the beginning, or the end, as fit into this many bytes."""
    data = text.encode()
    return (data[-size:] if tail else data[:size]).decode(errors="ignore")


def _error(tables: Tables, error: Json) -> Json:
    """Keep of an error what the setting store_errors allows."""
    if not isinstance(error, dict):
        return None
    name, message, trace = (field_text(error, key) for key in ("class", "message", "traceback"))
    if not tables.config.store_errors:
        message = trace = None
    kept = {"message": message and clip(message, 8192), "traceback": trace and clip(trace, 65536, tail=True)}
    return present(**{"class": name and name[:500]}, **kept)
