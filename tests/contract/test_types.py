"""
What a type checker makes of tasks: mypy reads this file, and an `ignore` that is not needed is an error.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, assert_type

import pytest

from pyprocrastinate import App, JobContext
from pyprocrastinate.testing import InMemoryConnector


def an_app() -> App:
    return App(connector=InMemoryConnector())


def test_a_job_is_deferred_with_what_the_function_takes() -> None:
    app = an_app()

    @app.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    assert_type(add(1, b=2), int)
    assert_type(add.defer(a=1), int)
    add.defer(1, b=2)
    add.defer(wrong=1)  # type: ignore[call-arg]
    add.defer(a="1")  # type: ignore[arg-type]
    assert len(app.job_manager.list_jobs()) == 4


async def test_the_same_of_async_code() -> None:
    app = an_app()

    @app.task(queue="q", retry=3)
    async def greet(name: str) -> str:
        return f"hello {name}"

    assert_type(greet(name="ada"), Coroutine[Any, Any, str]).close()
    assert_type(await greet.defer_async(name="ada"), int)
    await greet.defer_async(nom="ada")  # type: ignore[call-arg]
    assert len(await app.job_manager.list_jobs_async()) == 2


def test_the_context_is_not_deferred() -> None:
    app = an_app()

    @app.task(pass_context=True)
    def look(context: JobContext, x: int) -> None: ...

    look.defer(x=1)
    look.defer()  # type: ignore[call-arg]
    assert len(app.job_manager.list_jobs()) == 2


def test_neither_is_the_timestamp_of_a_schedule() -> None:
    app = an_app()

    @app.periodic(cron="0 4 * * *")
    @app.task
    def tick(timestamp: int, x: str = "") -> None: ...

    @app.periodic(cron="0 4 * * *")  # type: ignore[arg-type]
    @app.task
    def no_tick(x: str) -> None: ...

    tick.defer(x="1")
    tick.defer(timestamp=1)  # type: ignore[call-arg]
    assert len(app.job_manager.list_jobs()) == 2


def test_options_are_known() -> None:
    app = an_app()

    @app.task
    def task(timestamp: int) -> None: ...

    with pytest.raises(TypeError, match="queu"):
        app.task(queu="q")(print)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="shedule_in"):
        task.configure(shedule_in={"hours": 1})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="shedule_in"):
        app.configure_task("elsewhere", shedule_in={"hours": 1})  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="priorty"):
        app.periodic(cron="* * * * *", priorty=1)(task)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="concurency"):
        app.run_worker(wait=False, concurency=2)  # type: ignore[call-arg]
