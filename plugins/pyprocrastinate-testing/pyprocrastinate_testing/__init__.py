"""
The queue of pyprocrastinate in memory, for tests of programs that use it.

The rules of the queue stand in the schema, `sql/functions/`, and here a second time: a module for each file there, with
the same names.
A test drives both side by side.
"""

from pyprocrastinate_testing import cancel, cron, defer, fetch, finish, manage, purge, retry, schedule, tick, worker  # noqa: F401
from pyprocrastinate_testing.connector import InMemoryConnector

__all__ = ["InMemoryConnector"]
