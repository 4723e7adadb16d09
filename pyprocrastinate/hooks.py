"""
The plugins of an app: found, checked, and called as `hookspecs` promises.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

import pyprocrastinate_hooks
from pyprocrastinate import hookspecs, payload
from pyprocrastinate.exceptions import PluginError
from pyprocrastinate.retry import RetryDecision
from pyprocrastinate_hooks import Implementation, attempt, enter, observers

if TYPE_CHECKING:
    from pyprocrastinate.app import App
    from pyprocrastinate.jobs import Job


class Hooks:
    """
    The installed plugins, and those of an app.

    Raises PluginError, with the name of the plugin that is wrong.
    """

    def __init__(self, plugins: Iterable[object] = ()) -> None:
        self.origins: dict[str, str] = {}
        self._manager = pluggy.PluginManager("pyprocrastinate")
        self._manager.add_hookspecs(hookspecs)
        for entry in _installed():
            self._add(entry.name, entry.load, f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value)
        for plugin in plugins:
            self._add(getattr(plugin, "__name__", type(plugin).__name__), lambda: plugin, "the app")  # noqa: B023
        self.implementations = {
            hook: [Implementation(hook, i.plugin_name, i.function, i.argnames) for i in caller.get_hookimpls()[::-1]]
            for hook, caller in vars(self._manager.hook).items()
        }

    def _add(self, name: str, load: Callable[[], object], origin: str) -> None:
        try:
            self._manager.register(load(), name)
            self._manager.check_pending()
        except Exception as error:
            raise PluginError(f"plugin {name}, from {origin}: {error!r}") from error
        self.origins[name] = origin

    def has(self, hook: str) -> bool:
        """Tell whether any plugin has this hook; it is quick, and what is not needed then is not done."""
        return bool(self.implementations[hook])

    def observe(self, hook: str, **arguments: Any) -> None:
        """Have all plugins told that have this hook."""
        for each in self.implementations[hook]:
            observers.put(each, arguments)

    @contextmanager
    def wrap_defer(self, app: App, jobs: Callable[[], list[Job]]) -> Iterator[dict[str, Any]]:
        headers: dict[str, Any] = {}
        with ExitStack() as stack:
            for each in self.implementations["wrap_defer"]:
                context, own = copy_context(), dict(headers)
                call = partial(each, app=app, jobs=jobs(), headers=own)
                if leave := each.ask(pyprocrastinate_hooks.BUDGET, context, enter, call):
                    headers = each.heed(attempt(_stored, own)) or headers
                    stack.push(partial(each.leave, context, leave))
            yield headers

    async def wrap_job(self, **arguments: Any) -> list[Callable[..., Any]]:
        """Return what is to be awaited at the end, with the exception if there is one."""
        entered: list[Callable[..., Any]] = []
        for each in self.implementations["wrap_job"]:
            context = copy_context()
            if leave := await each.ask_async(context, enter, partial(each, **arguments)):
                entered.insert(0, partial(each.ask_async, context, leave))
                for variable, value in context.items():
                    variable.set(value)
        return entered

    async def decide_retry(self, **arguments: Any) -> tuple[Implementation, Any] | None:
        """Return who has decided, and what an outcome has as `retry`."""
        for each in self.implementations["decide_retry"]:
            answer = await each.ask_async(copy_context(), partial(each, **arguments))
            if answer is not None and (retry := each.heed(attempt(_decided, answer))):
                return each, payload.loads(retry)
        return None

    def register_tasks(self, app: App) -> None:
        for each in self.implementations["register_tasks"]:
            blueprint = each.ask(pyprocrastinate_hooks.PATIENCE, copy_context(), partial(each, app=app))
            if blueprint is not None:
                each.heed(attempt(partial(app.add_tasks_from, blueprint, namespace=each.plugin)))


def _installed() -> list[EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group="pyprocrastinate")}
    wanted = {name.strip() for name in os.environ.get("PROCRASTINATE_PLUGINS", "").split(",")} - {""} or found.keys()
    if missing := wanted - found.keys() - {"none"}:
        raise PluginError(f"PROCRASTINATE_PLUGINS has {', '.join(missing)}; installed: {', '.join(sorted(found))}")
    return [found[name] for name in sorted(wanted - {"none"})]


def _stored(headers: dict[str, Any]) -> Any:
    """Return headers as the database will have them; later changes do not count."""
    return payload.loads(payload.encode(headers, what="headers"))


def _decided(answer: Any) -> str:
    """Return an answer as JSON, the way an outcome has it; null for no retry."""
    if answer is False:
        return "null"
    return payload.encode((RetryDecision() if answer is True else answer).as_outcome(), what="the decision")
