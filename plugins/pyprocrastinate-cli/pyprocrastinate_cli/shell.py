"""
Looking at jobs and managing them from a prompt, or with one command.
"""

from __future__ import annotations

import cmd
import shlex
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from psycopg.errors import InsufficientPrivilege

from pyprocrastinate.exceptions import ConnectorException
from pyprocrastinate.jobs import plain

if TYPE_CHECKING:
    from pyprocrastinate.jobs import Job
    from pyprocrastinate.manager import JobManager


def job_line(job: Job, *, details: bool = False) -> str:
    """Return a job on one line."""
    line = f"#{job.id} {job.task_name} on {job.queue} - [{job.status}]"
    if details:
        line += (
            f" (attempts={job.attempts}, priority={job.priority}, scheduled_at={job.scheduled_at}, "
            f"args={job.task_kwargs}, lock={job.lock})"
        )
    return plain(line)


def count_line(counts: dict[str, Any]) -> str:
    """Return the counts of a queue, a task or a lock on one line."""
    by_status = ", ".join(f"{status}: {count}" for status, count in list(counts.items())[2:])
    return plain(f"{counts['name']}: {counts['jobs_count']} jobs ({by_status})")


class Shell(cmd.Cmd):
    """
    The prompt.

    What goes wrong in one command is shown, and the next one is asked for; `run` raises it.
    """

    intro = "Type help or ? for the commands, exit to leave.\n"
    prompt = "pyprocrastinate> "

    def __init__(self, manager: JobManager) -> None:
        super().__init__()
        self.manager = manager

    def run(self, words: tuple[str, ...]) -> None:
        """Run one command; raises what it raises, and ValueError where there is no such command."""
        if not hasattr(self, f"do_{words[0]}"):
            raise ValueError(f"there is no command {words[0]}: see help")
        super().onecmd(shlex.join(words))

    def onecmd(self, line: str) -> bool:
        try:
            return bool(super().onecmd(line))
        except Exception:  # noqa: BLE001  # the next command may be better
            print(traceback.format_exc(), file=self.stdout, end="")
            return False

    def emptyline(self) -> bool:
        return False

    def do_list_jobs(self, line: str) -> None:
        """
        List jobs: list_jobs [id=…] [queue=…] [task=…] [status=…] [lock=…] [queueing_lock=…] [details]
        """
        words = shlex.split(line)
        details = "details" in words
        filters = _filters([word for word in words if word != "details"])
        if "id" in filters:
            filters["id"] = int(filters["id"])
        for job in self.manager.list_jobs(**filters):
            print(job_line(job, details=details), file=self.stdout)

    def do_list_queues(self, line: str) -> None:
        """
        Count jobs by queue: list_queues [queue=…] [task=…] [status=…] [lock=…]
        """
        self._counts(self.manager.list_queues, line)

    def do_list_tasks(self, line: str) -> None:
        """
        Count jobs by task: list_tasks [queue=…] [task=…] [status=…] [lock=…]
        """
        self._counts(self.manager.list_tasks, line)

    def do_list_locks(self, line: str) -> None:
        """
        Count jobs by lock: list_locks [queue=…] [task=…] [status=…] [lock=…]
        """
        self._counts(self.manager.list_locks, line)

    def do_retry(self, line: str) -> None:
        """
        Run a job again that has ended, or runs: retry ID
        """
        self.manager.retry_job_by_id(int(line))
        self._show(int(line), "put back")

    def do_cancel(self, line: str) -> None:
        """
        Cancel a job that waits: cancel ID
        """
        if not self.manager.cancel_job_by_id(int(line)):
            status = self.manager.get_job_status(int(line)).value
            raise ValueError(f"job {int(line)} cannot be cancelled: it is {status}")
        self._show(int(line), "cancelled")

    def _show(self, job_id: int, done: str) -> None:
        try:
            self.do_list_jobs(f"id={job_id}")
        except ConnectorException as error:
            # A client may do this to jobs, and read none.
            if not isinstance(error.__cause__, InsufficientPrivilege):
                raise
            print(f"#{job_id} is {done}")

    def do_exit(self, line: str) -> bool:
        """
        Leave; so does the end of the input.
        """
        return True

    do_EOF = do_exit

    def _counts(self, count: Callable[..., list[dict[str, Any]]], line: str) -> None:
        for counts in count(**_filters(shlex.split(line))):
            print(count_line(counts), file=self.stdout)


def _filters(words: list[str]) -> dict[str, Any]:
    filters = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"write name=value, not {word}")
        filters[name] = value
    return filters
