"""
Calls what plugins bring, in other threads and within a budget, so that it hurts neither the caller nor other plugins.

Whatever goes wrong is logged as `pyprocrastinate.hooks`, with the plugin's name.
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import inspect
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import ExitStack
from contextvars import Context
from queue import SimpleQueue
from time import monotonic, sleep
from typing import Any

logger = logging.getLogger("pyprocrastinate.hooks")

# Seconds for a call that nobody but a start or an end waits for, and for one that a job or a defer waits for.
PATIENCE = 5.0
BUDGET = 1.0
_MOST_OVERDUE = 3
_MOST_WAITING = 100_000

Outcome = tuple[Any, BaseException | None]


def attempt(function: Callable[..., Any], *args: Any) -> Outcome:
    """Return the result or the exception, of whatever kind: no future carries all of them."""
    try:
        return function(*args), None
    except BaseException as error:  # noqa: BLE001  # as said
        return None, error


async def _attempt_async(coroutine: Coroutine[Any, Any, Any]) -> Outcome:
    try:
        return await coroutine, None
    except BaseException as error:  # noqa: BLE001  # some would end the event loop
        return None, error


def _outcome(get: Callable[..., Outcome], *args: Any) -> Outcome:
    """Return the outcome that a task has, or that it was cancelled: one that cancels itself in the end has none."""
    outcome, error = attempt(get, *args)
    return outcome or (None, error)


def _in_thread(function: Callable[..., Any], *args: Any) -> Future[Outcome]:
    """Call it in a thread that, unlike an executor's, the end of the process does not wait for."""
    future: Future[Outcome] = Future()
    future.set_running_or_notify_cancel()
    threading.Thread(target=lambda: future.set_result(attempt(function, *args)), daemon=True).start()
    return future


@dataclasses.dataclass(eq=False)
class Implementation:
    """
    What one plugin does at one hook.

    Whatever goes wrong with it is logged, and then there is None in place of a result.
    """

    hook: str
    plugin: str
    function: Callable[..., Any]
    argnames: Iterable[str]
    overdue: int = 0
    traced: bool = dataclasses.field(default_factory=lambda: os.environ.get("PROCRASTINATE_TRACE_HOOKS", "0") != "0")

    def __call__(self, **arguments: Any) -> Any:
        return self.call(arguments)

    def call(self, arguments: dict[str, Any]) -> Any:
        if self.overdue >= _MOST_OVERDUE:
            return None
        if self.traced:
            self.log(logging.INFO, "called")
        return self.function(*map(arguments.__getitem__, self.argnames))

    def ask(self, seconds: float, context: Context, function: Callable[..., Any], *args: Any) -> Any:
        """Call something of the plugin's in another thread, in this context."""

        def complete() -> Any:
            result = function(*args)
            return asyncio.run(result) if inspect.iscoroutine(result) else result

        try:
            return self.heed(_in_thread(context.run, complete).result(seconds))
        except TimeoutError:
            return self.give_up(seconds)

    def leave(self, context: Context, function: Callable[..., Any], *error: Any) -> None:
        self.ask(BUDGET, context, function, *error)

    async def ask_async(self, context: Context, function: Callable[..., Any], *args: Any) -> Any:
        """Call something of the plugin's in another thread; what it returns is awaited on this one's event loop."""
        result = await self._await(asyncio.wrap_future(_in_thread(context.run, function, *args)))
        if inspect.iscoroutine(result):
            return await self._await(asyncio.create_task(_attempt_async(result), context=context))
        return result

    async def _await(self, future: asyncio.Future[Outcome]) -> Any:
        began = monotonic()
        if not (await asyncio.wait({future}, timeout=BUDGET))[0]:
            future.cancel()
            return self.give_up(BUDGET)
        if (seconds := monotonic() - began) > BUDGET:
            self.log(logging.WARNING, f"took {seconds:.1f} s, or else a task has blocked the event loop")
        return self.heed(_outcome(future.result))

    def heed(self, outcome: Outcome) -> Any:
        """Return the result of a call."""
        result, error = outcome
        if error is not None:
            self.log(logging.ERROR, repr(error), error)
        return result

    def give_up(self, seconds: float) -> None:
        """Abandon a call."""
        self.overdue += 1
        end = ", and not called any more" * (self.overdue >= _MOST_OVERDUE)
        self.log(logging.ERROR if end else logging.WARNING, f"not done after {seconds} s, so abandoned{end}")

    def log(self, level: int, text: str, error: BaseException | None = None) -> None:
        extra = {"action": "plugin", "plugin": self.plugin, "hook": self.hook}
        logger.log(level, "Plugin %s, %s: %s", self.plugin, self.hook, text, exc_info=error, extra=extra)


class Observers:
    """The thread that calls observers, of all apps, and the one that watches it; both begin with the first call."""

    def __init__(self) -> None:
        self._waiting: SimpleQueue[tuple[Implementation, dict[str, Any]] | threading.Event] = SimpleQueue()
        # Whoever takes a call out has the say: the thread that was busy with it, or the one that watches.
        self._busy: dict[tuple[Implementation, float], bool] = {}
        self._begun = False

    def put(self, each: Implementation, arguments: dict[str, Any]) -> None:
        """Have it called, after what was put before; from any thread."""
        if not self._begun:
            self._begun = True
            atexit.register(self.flush)
            for target in (self._serve, self._watch):
                threading.Thread(target=target, name="pyprocrastinate-plugins", daemon=True).start()
        if self._waiting.qsize() < _MOST_WAITING:
            self._waiting.put((each, arguments))
        else:
            each.log(logging.ERROR, "not called, because too many calls are waiting")

    def flush(self) -> None:
        """Wait until all is done that was put before, but not for ever."""
        done = threading.Event()
        if self._begun:
            self._waiting.put(done)
            done.wait(PATIENCE)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while True:
                item = self._waiting.get()
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                each, arguments = item
                call = each, monotonic()
                self._busy[call] = True
                result, error = attempt(each.call, arguments)
                if result is not None and inspect.iscoroutine(result):
                    result, error = _outcome(runner.run, _attempt_async(result))
                if not self._busy.pop(call, False):
                    return
                if (seconds := monotonic() - call[1]) > PATIENCE:
                    each.log(logging.WARNING, f"took {seconds:.1f} s, and all other observers waited")
                if error is not None:
                    each.heed((None, error))

    def _watch(self) -> None:
        while True:
            sleep(PATIENCE / 5)
            for each, began in list(self._busy):
                if monotonic() - began > PATIENCE and self._busy.pop((each, began), False):
                    each.give_up(PATIENCE)
                    threading.Thread(target=self._serve, name="pyprocrastinate-plugins", daemon=True).start()


observers = Observers()
if hasattr(os, "register_at_fork"):
    # Threads stay behind.
    os.register_at_fork(after_in_child=lambda: Observers.__init__(observers))


def enter(call: Callable[[], Any]) -> Any:
    """Call an implementation of `wrap_*`, enter what it returns, and return what leaves it."""
    manager = call()
    if inspect.iscoroutine(manager) or hasattr(manager, "__aenter__"):
        return enter_async(manager)
    manager = ExitStack() if manager is None else manager
    manager.__enter__()
    return manager.__exit__


async def enter_async(manager: Any) -> Any:
    manager = await manager if inspect.iscoroutine(manager) else manager
    if not hasattr(manager, "__aenter__"):
        return enter(lambda: manager)
    await manager.__aenter__()
    return manager.__aexit__
