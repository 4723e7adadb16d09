"""
When a failed job runs again.

The usual strategies are policies that the schema applies; only a strategy of the user's own is asked in Python.
"""

from __future__ import annotations

import dataclasses
import datetime
import warnings
from collections.abc import Iterable
from typing import Any, TypeAlias

from pyprocrastinate import payload
from pyprocrastinate.jobs import Job
from pyprocrastinate.types import TimeDeltaParams

RetryValue: TypeAlias = "bool | int | BaseRetryStrategy"


@dataclasses.dataclass(kw_only=True)
class RetryDecision:
    """Run the job again: at once, at a time or after a while, and perhaps elsewhere. None leaves as it was."""

    retry_at: datetime.datetime | None = None
    retry_in: TimeDeltaParams | None = None
    priority: int | None = None
    queue: str | None = None
    lock: str | None = None

    def __post_init__(self) -> None:
        if self.retry_at is not None and self.retry_in is not None:
            raise ValueError("retry_at and retry_in exclude each other")
        if self.retry_at is not None and self.retry_at.utcoffset() is None:
            raise ValueError("retry_at needs a time zone")

    def as_outcome(self) -> dict[str, Any]:
        """Return what an outcome carries as `retry`."""
        delay = datetime.timedelta(**(self.retry_in or {})).total_seconds()
        when: dict[str, Any] = {"at": self.retry_at.isoformat()} if self.retry_at else {"in": delay}
        others = {"priority": self.priority, "queue": self.queue, "lock": self.lock}
        return when | {key: value for key, value in others.items() if value is not None}


class BaseRetryStrategy:
    """A strategy of your own: override `get_retry_decision`."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Decide on the run that ended with `exception`; None means that the job does not run again."""
        missing = type(self).get_schedule_in is BaseRetryStrategy.get_schedule_in
        if missing:
            raise NotImplementedError(f"{type(self).__name__} has no get_retry_decision")
        warnings.warn("get_schedule_in is deprecated: define get_retry_decision", DeprecationWarning, stacklevel=2)
        seconds = self.get_schedule_in(exception=exception, attempts=job.attempts)
        return None if seconds is None else RetryDecision(retry_in={"seconds": seconds})

    def get_schedule_in(self, *, exception: BaseException, attempts: int) -> int | None:
        """Return the seconds to wait. Deprecated."""
        raise NotImplementedError

    def policy(self) -> Any:
        """Return the policy that the schema applies, or None if this strategy must be asked."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetryStrategy(BaseRetryStrategy):
    """
    Run again until `max_attempts` runs have failed, after wait + linear_wait * n + exponential_wait
    ** (n + 1) seconds,
    n being the number of earlier runs.

    `retry_exceptions` limits it to these exceptions and their subclasses.
    """

    max_attempts: int | None = None
    wait: float = 0
    linear_wait: float = 0
    exponential_wait: float = 0
    retry_exceptions: Iterable[type[BaseException]] | None = None

    def __post_init__(self) -> None:
        if self.retry_exceptions is not None:
            object.__setattr__(self, "retry_exceptions", tuple(self.retry_exceptions))

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """Decide as the schema does; only a subclass that overrides this is asked by the worker."""
        if self.max_attempts and job.attempts >= self.max_attempts:
            return None
        if self.retry_exceptions and not isinstance(exception, tuple(self.retry_exceptions)):
            return None
        try:
            growth = self.exponential_wait ** (job.attempts + 1)
            wait = self.wait + self.linear_wait * job.attempts + growth
            datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=wait)
        except OverflowError:
            return RetryDecision(retry_at=datetime.datetime.max.replace(tzinfo=datetime.UTC))
        return RetryDecision(retry_in={"seconds": wait})

    def policy(self) -> Any:
        if type(self).get_retry_decision is not RetryStrategy.get_retry_decision:
            return None
        policy: dict[str, Any] = {
            "max_attempts": self.max_attempts or None,
            "wait": self.wait,
            "linear_wait": self.linear_wait,
            "exponential_wait": self.exponential_wait,
        }
        if self.retry_exceptions is not None:
            policy["retry_exceptions"] = [payload.qualified(cls) for cls in self.retry_exceptions]
        return policy


def get_retry_strategy(retry: RetryValue) -> BaseRetryStrategy | None:
    """Return the strategy that `retry=` of a task stands for."""
    if isinstance(retry, BaseRetryStrategy):
        return retry
    if not retry:
        return None
    return RetryStrategy(max_attempts=None if retry is True else retry)
