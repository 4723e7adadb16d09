"""
How runs end: 30_finish.sql.

Only the holder of a job's current token ends its run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pyprocrastinate_testing import line
from pyprocrastinate_testing.functions import Id, Row, function
from pyprocrastinate_testing.outcomes import end_runs
from pyprocrastinate_testing.tables import Job, Tables
from pyprocrastinate_testing.values import Json, present, refuse, to_time


@function
def finish_v1(
    tables: Tables,
    worker_id: Id,
    succeeded: list[int] = "{}",  # type: ignore[assignment]
    tokens: list[int] = "{}",  # type: ignore[assignment]
    outcomes: Json = "[]",
    keep: bool = True,
) -> list[Row]:
    """Return id, token, verdict, sqlstate, message, status and time of the retry for each outcome."""
    plain = list(itertools.zip_longest(succeeded, tokens))
    sifted, _ = sift(succeeded, tokens, outcomes)
    found = finish(tables, succeeded, tokens, sifted, keep)
    verdicts = {(verdict.get("id"), verdict.get("token")): verdict for verdict in found}
    ok = {"verdict": "ok", "status": "succeeded"}
    rows = [_row(*run, verdicts.get(run, ok)) for run in plain]
    for outcome in outcomes:
        run, fault = _run(outcome), _fault(outcome)
        rows.append(_row(*run, _refused(run, fault) if fault else verdicts.get(run, ok)))
    return rows


def _row(job_id: int | None, token: int | None, verdict: Json) -> Row:
    retry_at = verdict.get("retry_at")
    said = (verdict.get(key) for key in ("verdict", "sqlstate", "message", "status"))
    return (job_id, token, *said, retry_at and to_time(retry_at))


def sift(succeeded: Sequence[int], tokens: Sequence[int], outcomes: Json) -> tuple[list[Json], list[Json]]:
    """Return the outcomes but those that nobody can read or are told twice, and verdicts that refuse the former."""
    if not isinstance(outcomes, list):
        hint = 'Pass [{"id": 1, "token": 1, "outcome": "failed"}].'
        refuse("22023", "outcomes must be a JSON array", hint=hint)
    told: dict[tuple[int | None, int | None], Json] = dict.fromkeys(zip(succeeded, tokens, strict=False))
    verdicts = []
    for outcome in outcomes:
        if fault := _fault(outcome):
            verdicts.append(_refused(_run(outcome), fault))
        else:
            told.setdefault(_run(outcome), outcome)
    return [outcome for outcome in told.values() if outcome is not None], verdicts


def _run(outcome: Json) -> tuple[int | None, int | None]:
    found = outcome if isinstance(outcome, dict) else {}
    return _bigint(found.get("id")), _bigint(found.get("token"))


def _bigint(value: Json) -> int | None:
    return value if type(value) is int and abs(value) < 2**63 else None


def _fault(outcome: Json) -> str | None:
    if not isinstance(outcome, dict):
        return "an outcome must be a JSON object"
    if any(outcome.get(key) is not None and _bigint(outcome[key]) is None for key in ("id", "token")):
        return "id and token must be integers"
    return None if isinstance(outcome.get("keep"), bool | None) else "keep must be true or false"


def _refused(run: tuple[int | None, int | None], fault: str) -> Json:
    return present(id=run[0], token=run[1], verdict="refused", sqlstate="22023", message=fault)


def finish(tables: Tables, succeeded: Sequence[int], tokens: Sequence[int], outcomes: Json, keep: bool) -> list[Json]:
    """End runs and return the verdicts other than plain ok."""
    now = tables.now()
    verdicts: list[Json] = []
    ended: list[Job] = []
    for job_id, token in zip(succeeded, tokens, strict=False):
        if job := current(tables, job_id, token):
            tables.end(job, "succeeded", now, keep=keep)
            ended.append(job)
    plain = {job.token for job in ended}
    for job_id, token in itertools.zip_longest(succeeded, tokens):
        if token not in plain:
            verdicts.append(_late(tables, job_id, token, keep))
    verdicts += end_runs(tables, outcomes, ended, now)
    for outcome in outcomes:
        run = _run(outcome)
        if not any(run == (verdict.get("id"), verdict.get("token")) for verdict in verdicts):
            verdicts.append(_late(tables, *run, kept(outcome)))
    for job in ended:
        line.call_up(tables, job.lock, now)
    return verdicts


def current(tables: Tables, job_id: int, token: int | None) -> Job | None:
    """Return the job if the run under this token goes on."""
    job = tables.job.get(job_id)
    return job if job and job.status == "doing" and job.token == token else None


def kept(outcome: Json) -> bool:
    """Tell whether a job that ends so stays in the history."""
    return outcome.get("keep") is not False


def _late(tables: Tables, job_id: int | None, token: int | None, keep: bool) -> Json:
    """Tell a run that ended before (already) from one whose job was given to somebody else, or is gone (stale)."""
    job = tables.job.get(job_id or 0) or tables.done.get(job_id or 0)
    if job is None or token is None or job.token != token or job.status == "doing":
        return present(id=job_id, token=token, verdict="stale")
    if job.finished_at and not keep:
        # ended by complete_v1, which keeps the job, while its worker was told to forget it
        del tables.done[job.id]
        tables.forget_events([job.id])
        return {"id": job_id, "token": token, "verdict": "already"}
    return {"id": job_id, "token": token, "verdict": "already", "status": job.status}


@function
def complete_v1(tables: Tables, job_id: Id, token: Id, result: Json = None) -> None:
    """End a run as succeeded, now; JQ002 when the token is not current."""
    outcome = {"id": job_id, "token": token, "outcome": "succeeded"} | present(result=result)
    verdict = finish(tables, [], [], [outcome], True)[0]["verdict"]
    if verdict != "ok":
        refuse(
            "JQ002",
            f"job {job_id} is not held under this token",
            detail="This run has already ended." if verdict == "already" else "The job was given away, or is gone.",
            hint="Roll back: what this run did must not count.",
        )
