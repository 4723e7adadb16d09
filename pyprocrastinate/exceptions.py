"""
Everything this package raises.

    ProcrastinateException
    ├── TaskNotFound
    ├── UnboundTaskError
    ├── TaskAlreadyRegistered
    ├── MiddlewareKindMismatch
    ├── LoadFromPathError (also ImportError)
    ├── PluginError
    ├── CallerModuleUnknown
    ├── FunctionPathError
    ├── RunTaskError
    ├── JobRetry
    ├── JobAborted
    ├── AppNotOpen
    ├── MissingApp
    ├── SyncConnectorConfigurationError
    ├── MovedElsewhere
    ├── AlreadyEnqueued                 caused by UniqueViolation
    ├── InvalidTimestamp
    └── ConnectorException              the database said no, or could not be asked
        ├── UniqueViolation             23505
        ├── NoResult
        └── Refused                     a rule of the schema; one class for each of its SQLSTATEs
            ├── JobNotFound             JQ001
            ├── TokenNotCurrent         JQ002
            ├── WrongJobState           JQ003
            ├── WorkerNotRegistered     JQ004
            ├── ProtocolNotSpoken       JQ005
            ├── WrongIsolationLevel     JQ006
            ├── TestClockNotEnabled     JQ023
            ├── QueueNotAllowed         JQ024
            ├── ProtocolInUse           JQ901
            └── InvalidValue (also ValueError)    22023
                ├── InvalidText         22P02, 22P05
                ├── ArgsNotAnObject     JQ010
                ├── ArgsTooDeep         JQ011
                ├── ArgsTooLarge        JQ012
                ├── TimeOutOfRange      JQ013
                ├── InvalidName         JQ014
                ├── PriorityOutOfRange  JQ015
                ├── UnknownOption       JQ016
                ├── InvalidRetryPolicy  JQ017
                ├── InvalidSetting      JQ018
                ├── InvalidCron         JQ020
                ├── UnknownTimezone     JQ021
                └── ScheduleNameTaken   JQ022
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pyprocrastinate.retry import RetryDecision


class ProcrastinateException(Exception):
    """Something went wrong in pyprocrastinate."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().partition("\n")[0])


class TaskNotFound(ProcrastinateException):
    """No task of this name is registered."""


class PluginError(ProcrastinateException):
    """A plugin cannot be loaded, or has hooks that do not exist."""


class UnboundTaskError(ProcrastinateException):
    """A task of a blueprint was deferred before the blueprint was added to an app."""


class TaskAlreadyRegistered(ProcrastinateException):
    """A task of this name, alias or namespace is registered already."""


class MiddlewareKindMismatch(ProcrastinateException):
    """The middleware is sync where it must be async, or the other way round."""


class LoadFromPathError(ImportError, ProcrastinateException):
    """The dotted path does not lead to an object of the expected type."""


class CallerModuleUnknown(ProcrastinateException):
    """The module that made the app could not be told."""


class FunctionPathError(ProcrastinateException):
    """The function has no name of its own: give the task one with `name=`."""


class RunTaskError(ProcrastinateException):
    """The task could not be run."""


class JobRetry(ProcrastinateException):
    """Raised by a task to be run again as `retry_decision` says, whatever its retry strategy."""

    def __init__(self, retry_decision: RetryDecision) -> None:
        super().__init__()
        self.retry_decision = retry_decision


class JobAborted(ProcrastinateException):
    """Raised by a task to end as aborted."""


class AppNotOpen(ProcrastinateException):
    """The app is not open: use `with app.open():` or `async with app.open_async():`."""


class MissingApp(ProcrastinateException):
    """No app was given."""


class SyncConnectorConfigurationError(ProcrastinateException):
    """A sync connector cannot do this: use an async one, such as PsycopgConnector."""


class MovedElsewhere(ProcrastinateException):
    """This name lives elsewhere now."""


class AlreadyEnqueued(ProcrastinateException):
    """A waiting job holds this queueing lock already."""


class InvalidTimestamp(ProcrastinateException):
    """The timestamp is not one of the periodic task's."""


class ConnectorException(ProcrastinateException):
    """The database refused, or could not be reached."""


class NoResult(ConnectorException):
    """The query gave no row."""


class UniqueViolation(ConnectorException):
    """A row with this key exists already."""

    def __init__(self, message: str | None = None, *, constraint_name: str = "", queueing_lock: str = "") -> None:
        super().__init__(message)
        self.constraint_name = constraint_name
        self.queueing_lock = queueing_lock


REFUSALS: dict[str, type[Refused]] = {}


class Refused(ConnectorException):
    """
    The schema refused a call.

    `detail` tells the state it found, `hint` what to do next; neither holds a value of a job's
    args.
    """

    sqlstates: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, *, sqlstates: str = "") -> None:
        super().__init_subclass__()
        cls.sqlstates = tuple(sqlstates.split())
        REFUSALS.update(dict.fromkeys(cls.sqlstates, cls))

    def __init__(self, message: str | None = None, *, detail: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (super().__str__(), self.detail, self.hint) if part)


class JobNotFound(Refused, sqlstates="JQ001"):
    """There is no such job."""


class TokenNotCurrent(Refused, sqlstates="JQ002"):
    """The job is no longer the caller's: its run has ended, or another worker has it."""


class WrongJobState(Refused, sqlstates="JQ003"):
    """The job's state does not allow this."""


class WorkerNotRegistered(Refused, sqlstates="JQ004"):
    """The worker is not registered, or no longer."""


class ProtocolNotSpoken(Refused, sqlstates="JQ005"):
    """The schema and this release do not speak the same worker protocol."""


class WrongIsolationLevel(Refused, sqlstates="JQ006"):
    """Workers need READ COMMITTED."""


class TestClockNotEnabled(Refused, sqlstates="JQ023"):
    """The test clock is not enabled, or the caller does not own the schema."""

    __test__ = False


class QueueNotAllowed(Refused, sqlstates="JQ024"):
    """The role that has logged in may only defer, cancel and retry in other queues."""


class ProtocolInUse(Refused, sqlstates="JQ901"):
    """A live worker still speaks an older protocol, so the post stage must wait."""


class InvalidValue(Refused, ValueError, sqlstates="22023"):
    """An argument is not acceptable."""


class InvalidText(InvalidValue, sqlstates="22P02 22P05"):
    """PostgreSQL cannot store this text: a NUL character, half a surrogate pair, NaN or infinity."""


class ArgsNotAnObject(InvalidValue, sqlstates="JQ010"):
    """The arguments, or the headers, are not a JSON object."""


class ArgsTooDeep(InvalidValue, sqlstates="JQ011"):
    """The arguments are nested too deep."""


class ArgsTooLarge(InvalidValue, sqlstates="JQ012"):
    """The arguments are too large."""


class TimeOutOfRange(InvalidValue, sqlstates="JQ013"):
    """The time is infinite or absurd."""


class InvalidName(InvalidValue, sqlstates="JQ014"):
    """The name is empty or too long."""


class PriorityOutOfRange(InvalidValue, sqlstates="JQ015"):
    """The priority is out of range."""


class UnknownOption(InvalidValue, sqlstates="JQ016"):
    """There is no such option."""


class InvalidRetryPolicy(InvalidValue, sqlstates="JQ017"):
    """The retry policy is not one."""


class InvalidSetting(InvalidValue, sqlstates="JQ018"):
    """There is no such setting, or its value is not acceptable."""


class InvalidCron(InvalidValue, sqlstates="JQ020"):
    """The cron expression is not one."""


class UnknownTimezone(InvalidValue, sqlstates="JQ021"):
    """The time zone is not known."""


class ScheduleNameTaken(InvalidValue, sqlstates="JQ022"):
    """A schedule of the other kind, declared or made in SQL, has this name."""
