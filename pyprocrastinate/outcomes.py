"""
How runs ended: described as the schema wants to be told, sent, and what it answers.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg

from pyprocrastinate import exceptions, operations, payload
from pyprocrastinate.execution import Run
from pyprocrastinate.job_context import AbortReason
from pyprocrastinate.joblog import JobLog
from pyprocrastinate.jobs import DeleteJobCondition
from pyprocrastinate.link import Link, is_passing
from pyprocrastinate.operations import Outcomes

_RESEND_SECONDS = 0.2
_REASONS = {AbortReason.USER_REQUEST: "user", AbortReason.SHUTDOWN: "shutdown"}


class Describer:
    """Describes outcomes for one worker."""

    def __init__(self, delete_jobs: DeleteJobCondition, dumps: payload.JsonDumps, logger: logging.Logger) -> None:
        self._keep_success = delete_jobs is DeleteJobCondition.NEVER
        self._keep_others = delete_jobs is not DeleteJobCondition.ALWAYS
        self._dumps = dumps
        self._logger = logger

    def describe(self, run: Run) -> None:
        """Set `run.described`, unless it is a plain success; whatever is odd about it is put down to this run alone."""
        task = run.task
        stores = task is not None and task.store_result and run.result is not None
        if run.outcome == "succeeded" and not stores:
            return
        try:
            run.described = self._describe(run)
        except Exception as error:  # noqa: BLE001  # codecs and strategies are user code
            extra = {"action": "job_outcome_error", "job_id": run.id}
            self._logger.error("Job %s: its outcome cannot be told: %s", run.id, error, extra=extra)
            self.describe_failure(run, error)

    def describe_failure(self, run: Run, error: BaseException) -> None:
        """Set `run.described` to a failure that is surely understood, and is not retried."""
        run.outcome = "failed"
        run.described = self._encode(run, error=payload.error_report(error), retry=None)

    def gather(self, runs: Sequence[Run]) -> Outcomes:
        plain = [run for run in runs if run.described is None]
        described = [run.described for run in runs if run.described is not None]
        return Outcomes([run.id for run in plain], [run.token for run in plain], described, self._keep_success)

    def _describe(self, run: Run) -> str:
        details: dict[str, Any] = {}
        if run.outcome == "succeeded":
            described = self._encode(run)
            if (result := self._result(run)) is not None:
                return f'{described[:-1]},"result":{result}}}'
            return described
        if run.outcome == "aborted" and run.reason:
            details["reason"] = _REASONS[run.reason]
        if run.error is not None:
            details["error"] = self._error(run, run.error)
            if run.reason is not AbortReason.USER_REQUEST:
                details |= self._retry(run, run.error)
        return self._encode(run, **details)

    def _encode(self, run: Run, **details: Any) -> str:
        keep = self._keep_success if run.outcome == "succeeded" else self._keep_others
        outcome = {"id": run.id, "token": run.token, "outcome": run.outcome, "keep": keep}
        return payload.encode(outcome | details, json.dumps, "the outcome")

    def _error(self, run: Run, error: BaseException) -> dict[str, Any]:
        strategy = run.task and run.task.retry_strategy
        return payload.error_report(error, getattr(strategy, "retry_exceptions", None) or ())

    def _retry(self, run: Run, error: BaseException) -> dict[str, Any]:
        """Return the decision of user code, if there is one to ask; else the policy decides."""
        if isinstance(error, exceptions.JobRetry):
            return {"retry": error.retry_decision.as_outcome()}
        if run.decision:
            return {"retry": run.decision[1]}
        task = run.task
        if not task or not task.retry_strategy or task.retry_strategy.policy() is not None:
            return {}
        if run.outcome == "aborted" and run.reason is None:
            return {}
        retry = task.get_retry_exception(error, run.job)
        return {"retry": retry and retry.retry_decision.as_outcome()}

    def _result(self, run: Run) -> str | None:
        try:
            return payload.encode_result(run.result, self._dumps)
        except Exception as error:  # noqa: BLE001  # codecs and strategies are user code
            extra = {"action": "job_result_not_stored", "job_id": run.id}
            self._logger.warning("Job %s: its result is not stored: %s", run.id, error, extra=extra)
            return None


class Outbox:
    """
    Runs that ended, until their outcomes are accepted.

    One that is refused for a state of the database that will pass is held back for a moment; any other refusal turns it
    into a failure, which is surely understood.
    """

    def __init__(self, describer: Describer, link: Link, log: JobLog, woken: asyncio.Event) -> None:
        self.describer = describer
        self.runs: list[Run] = []
        self._held_back: set[Run] = set()
        self._link = link
        self._log = log
        self._woken = woken

    def __len__(self) -> int:
        return len(self.runs) + len(self._held_back)

    def __iter__(self) -> Iterator[Run]:
        return iter([*self.runs, *self._held_back])

    def put(self, run: Run) -> None:
        self.describer.describe(run)
        self.runs.append(run)

    def take(self) -> list[Run]:
        """Return what is to be told now."""
        batch, self.runs = self.runs, []
        return batch

    def put_back(self, batch: Sequence[Run]) -> None:
        """Keep what could not be told."""
        self.runs[:0] = batch

    def settle(self, batch: Sequence[Run], verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Heed what the schema made of the outcomes."""
        by_token = {verdict["token"]: verdict for verdict in verdicts}
        if not by_token and not self._log.wanted:
            return
        for run in batch:
            match by_token.get(run.token):
                case None:
                    self._log.ended(run, "succeeded", None)
                case {"verdict": "refused", "sqlstate": sqlstate} as verdict:
                    self._resend(run, sqlstate, verdict.get("message"))
                case {"verdict": "stale"}:
                    self._log.void(run, "job_stale", "was given to another worker; its outcome does not count")
                case verdict:
                    self._log.ended(run, verdict.get("status"), verdict.get("retry_at"))

    def _resend(self, run: Run, sqlstate: str, message: str | None) -> None:
        if is_passing(sqlstate):
            if not self._link.expired:
                self._held_back.add(run)
                asyncio.get_running_loop().call_later(_RESEND_SECONDS, self._send_again, run)
        elif run.decision:
            run.decision[0].log(logging.ERROR, f"its decision on job {run.id} is refused: {message} ({sqlstate})")
            run.decision = None
            self.put(run)
        elif not run.refused:
            run.refused = True
            error = exceptions.ConnectorException(f"the outcome was refused: {message} ({sqlstate})")
            self.describer.describe_failure(run, error)
            self.runs.append(run)
        else:
            self._log.void(run, "job_outcome_error", "its outcome is refused: %s", message)

    def _send_again(self, run: Run) -> None:
        self._held_back.discard(run)
        self.runs.append(run)
        self._woken.set()

    async def tell_alone(self, run: Run, cause: psycopg.Error, worker_id: int) -> None:
        """Tell one outcome by itself, after a call with others failed; if it is to blame, as a failure."""
        for attempt in range(2):
            if attempt:
                self.describer.describe_failure(run, operations.translate(cause))
            call = operations.finish(worker_id, self.describer.gather([run]))
            try:
                self.settle([run], await self._link.call(call))
                return
            except psycopg.Error as error:
                cause = error
        self._log.void(run, "job_outcome_error", "its outcome is refused: %s", cause)
