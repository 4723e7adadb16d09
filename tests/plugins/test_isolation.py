"""Whatever a plugin does, jobs end as without it, other plugins go on, and the log names it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time

import click
import pytest

import pyprocrastinate_hooks
from pyprocrastinate import App, PsycopgConnector, RetryDecision, hookimpl, hookspecs
from pyprocrastinate.exceptions import PluginError
from pyprocrastinate.hooks import Hooks
from pyprocrastinate_hooks import observers

pytestmark = pytest.mark.usefixtures("short")

HOOKS = {name for name, spec in vars(hookspecs).items() if hasattr(spec, "pyprocrastinate_spec")}
# Whose results count.
ANSWERING = {"wrap_defer", "wrap_job", "decide_retry", "register_tasks"}
RARE = {"job_abort_requested", "jobs_rescued", "schedules_fired"}
# Those that every run of a job comes by.
COMMON = HOOKS - RARE - {"register_commands"}


def plugin(hook, function, name="bad"):
    """Return a plugin that has one hook."""
    made = type("Plugin", (), {"__name__": name, hook: staticmethod(hookimpl(function))})
    return made()


class SelfMade(BaseException):
    pass


def raising(error):
    def raises():
        raise error

    return raises


def misdeeds(hook, never):
    """Return what may go wrong in a hook, by name."""

    async def raises_later():
        await asyncio.sleep(0)
        raise ValueError("later")

    async def cancels_itself():
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async def cancels_itself_last():
        asyncio.current_task().cancel()

    async def hangs_awaiting():
        await asyncio.Event().wait()

    async def cannot_be_cancelled():
        while not never.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    async def blocks_a_loop():
        time.sleep(0.3)  # noqa: ASYNC251  # the very thing

    found = {
        "raises": raising(ValueError("bad")),
        "cancels": raising(asyncio.CancelledError()),
        "exits": raising(SystemExit(3)),
        "interrupts": raising(KeyboardInterrupt()),
        "stops": raising(StopIteration()),
        "raises what is no Exception": raising(SelfMade()),
        "raises later": raises_later,
        "cancels itself": cancels_itself,
        "cancels itself last": cancels_itself_last,
        "hangs": lambda: never.wait(),
        "is slow": lambda: never.wait(0.3) and None,
        "hangs awaiting": hangs_awaiting,
        "cannot be cancelled": cannot_be_cancelled,
        "blocks a loop": blocks_a_loop,
    }
    if hook in ANSWERING:
        found["returns junk"] = lambda: "junk"
    return found


def good(hook, calls, name):
    """Return a plugin that has this hook, too, and does it right."""
    return plugin(hook, lambda: calls.append(name), name)


def culprits(complaints, hook):
    return {name for name, where, _ in complaints() if where == hook}


@pytest.mark.parametrize("hook", sorted(COMMON))
async def test_bad_plugins_hurt_nobody(open_app, drain, status, until, never, complaints, hook):
    calls, deeds = [], misdeeds(hook, never)
    bad = [plugin(hook, function, name) for name, function in deeds.items()]
    app = await open_app(good(hook, calls, "last"), *bad, good(hook, calls, "first"))

    @app.task(name="ok")
    async def ok():
        return 1

    @app.task(name="bad")
    def fails():
        raise ValueError

    ids = [await ok.defer_async(), await fails.defer_async()]
    await drain(app, concurrency=2)
    assert [status(job_id) for job_id in ids] == ["succeeded", "failed"]
    await until(lambda: culprits(complaints, hook) == deeds.keys())
    await until(lambda: calls and calls.count("first") == calls.count("last"))


@pytest.mark.parametrize("hook", sorted(RARE))
async def test_bad_plugins_hurt_nobody_when_something_rare_happens(
    open_app, status, until, never, complaints, conn, hook
):
    calls, deeds = [], misdeeds(hook, never)
    bad = [plugin(hook, function, name) for name, function in deeds.items()]
    app = await open_app(good(hook, calls, "last"), *bad, good(hook, calls, "first"))

    @app.task(name="ok")
    async def ok():
        pass

    @app.task(name="long")
    async def long():
        await asyncio.sleep(3600)

    lost = await ok.defer_async()
    dead = "select procrastinate.register_worker_v1('dead', null, '{}', '[]', 1, '30 seconds', '{}')"
    conn.execute(f"select procrastinate.fetch_v1(({dead}), 1)")
    conn.execute("update procrastinate.worker set heartbeat_at = heartbeat_at - interval '1 day'")
    conn.execute("select procrastinate.schedule('s', 'ok', '* * * * * *')")
    conn.execute("update procrastinate.tick set next_at = now()")
    endless = await long.defer_async()
    worker = app.make_worker(concurrency=2, install_signal_handlers=False)
    run = asyncio.create_task(worker.run())
    await until(lambda: status(endless) == "doing")
    await app.job_manager.cancel_job_by_id_async(endless, abort=True)
    await until(lambda: (status(lost), status(endless)) == ("succeeded", "aborted"))
    fired = "select from procrastinate.jobs where status = 'succeeded' and id <> %s"
    await until(lambda: conn.execute(fired, [lost]).rowcount)
    worker.stop()
    await run
    await until(lambda: culprits(complaints, hook) == deeds.keys())
    await until(lambda: calls and calls.count("first") == calls.count("last"))


DEEDS = {}
COMMANDS = """
from pyprocrastinate import hookimpl
from tests.plugins.test_isolation import DEEDS
register_commands = hookimpl(DEEDS["{name}"])
"""


def test_bad_plugins_hurt_no_command(install, command, never, complaints):
    def junk(cli):
        cli.commands["junk"] = "junk"

    def greeter(cli):
        cli.add_command(click.Command("greet", callback=lambda: click.echo("hello"), help="Say hello."))

    hook = "register_commands"
    bad = {name.replace(" ", "_"): function for name, function in misdeeds(hook, never).items()}
    DEEDS.update(bad, puts_junk=junk, zealous=greeter)
    for name in DEEDS:
        install(name, COMMANDS.format(name=name))
    assert command("greet").output == "hello\n"
    assert culprits(complaints, hook) == bad.keys() | {"puts_junk"}
    shown = command("--help").output
    assert "Say hello." in shown
    assert "healthchecks" in shown


def entered(function):
    class Manager:
        def __enter__(self):
            function()

        def __exit__(self, *_):
            pass

    return Manager


def left(function):
    class Manager:
        def __enter__(self):
            pass

        def __exit__(self, *_):
            function()

    return Manager


def entered_async(function):
    class Manager:
        async def __aenter__(self):
            result = function()
            if asyncio.iscoroutine(result):
                await result

        async def __aexit__(self, *_):
            pass

    return Manager


def left_async(function):
    class Manager:
        async def __aenter__(self):
            pass

        async def __aexit__(self, *_):
            result = function()
            if asyncio.iscoroutine(result):
                await result

    return Manager


@pytest.mark.parametrize("kind", ["raises", "cancels", "exits", "stops", "hangs"])
@pytest.mark.parametrize("manager", [entered, left])
@pytest.mark.parametrize("hook", ["wrap_job", "wrap_defer"])
async def test_a_bad_context_manager_hurts_nobody(open_app, drain, status, never, complaints, hook, manager, kind):
    calls = []
    app = await open_app(
        good(hook, calls, "last"), plugin(hook, manager(misdeeds(hook, never)[kind])), good(hook, calls, "first")
    )
    await goes_well(app, drain, status)
    assert calls == ["first", "last"]
    assert {complaint[:2] for complaint in complaints()} == {("bad", hook)}


@pytest.mark.parametrize(
    "kind",
    [
        "raises",
        "exits",
        "cancels itself",
        "cancels itself last",
        "hangs awaiting",
        "cannot be cancelled",
        "blocks a loop",
    ],
)
@pytest.mark.parametrize("manager", [entered_async, left_async])
async def test_a_bad_async_context_manager_hurts_nobody(open_app, drain, status, never, complaints, manager, kind):
    calls, hook = [], "wrap_job"
    app = await open_app(
        good(hook, calls, "last"), plugin(hook, manager(misdeeds(hook, never)[kind])), good(hook, calls, "first")
    )
    await goes_well(app, drain, status)
    assert calls == ["first", "last"]
    assert {complaint[:2] for complaint in complaints()} == {("bad", hook)}


async def goes_well(app, drain, status):
    """See a job succeed."""

    @app.task(name="ok")
    def ok():
        pass

    job_id = await ok.defer_async()
    await drain(app)
    assert status(job_id) == "succeeded"


@pytest.mark.parametrize("headers", [{"a": object()}, {"a": float("nan")}, {"a": "\0"}, {("a",): 1}])
async def test_headers_that_cannot_be_stored_are_left_out(open_app, complaints, headers):
    class Bad:
        @hookimpl
        def wrap_defer(self, headers):
            headers.update(junk)

    class Good:
        @hookimpl
        def wrap_defer(self, headers):
            headers["good"] = True

    junk = headers
    app = await open_app(Bad(), Good())
    await app.configure_task("t").defer_async()
    (job,) = await app.job_manager.list_jobs_async()
    assert job.headers == {"good": True}
    assert [complaint[:2] for complaint in complaints()] == [("Bad", "wrap_defer")]


async def test_a_decision_that_the_database_refuses_is_none(open_app, drain, status, complaints):
    app = await open_app(plugin("decide_retry", lambda: RetryDecision(queue="q" * 500)))

    @app.task(name="t", retry=1)
    async def t(tries=[]):  # noqa: B006  # it counts them
        tries.append(1)
        if len(tries) == 1:
            raise ValueError

    job_id = await t.defer_async()
    await drain(app)
    assert status(job_id) == "succeeded"
    assert complaints() == [("bad", "decide_retry", logging.ERROR)]


async def test_who_is_late_three_times_is_not_called_any_more(open_app, drain, status, never, complaints):
    calls = []

    def late():
        calls.append(1)
        never.wait()

    app = await open_app(plugin("wrap_job", late))

    @app.task(name="ok")
    async def ok():
        pass

    for _ in range(5):
        await ok.defer_async()
    await drain(app)
    assert len(calls) == 3
    assert [level for *_, level in complaints()] == [logging.WARNING, logging.WARNING, logging.ERROR]


async def test_an_observer_that_is_late_three_times_is_not_called_any_more(open_app, never, complaints, until):
    calls = []

    def late():
        calls.append(1)
        never.wait()

    app = await open_app(plugin("jobs_deferred", late), good("jobs_deferred", seen := [], "good"))
    for _ in range(5):
        await app.configure_task("t").defer_async()
    await until(lambda: len(seen) == 5)
    assert len(calls) == 3
    assert [level for *_, level in complaints()] == [logging.WARNING, logging.WARNING, logging.ERROR]


async def test_a_slow_observer_holds_no_job_up(open_app, drain, status, never):
    app = await open_app(plugin("job_started", lambda: never.wait()))

    @app.task(name="ok")
    async def ok():
        never.set()  # and not before

    job_id = await ok.defer_async()
    await drain(app)
    assert status(job_id) == "succeeded"


async def test_calls_beyond_a_limit_are_dropped(open_app, monkeypatch, never, complaints):
    await asyncio.to_thread(observers.flush)
    monkeypatch.setattr(pyprocrastinate_hooks, "_MOST_WAITING", 2)
    calls = []

    def slow():
        calls.append(1)
        never.wait(0.2)

    app = await open_app(plugin("jobs_deferred", slow))
    for _ in range(20):
        app.hooks.observe("jobs_deferred", app=app, jobs=[], in_transaction=False)
    never.set()
    await asyncio.to_thread(observers.flush)
    assert 1 <= len(calls) < 20
    assert complaints()[0] == ("bad", "jobs_deferred", logging.ERROR)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_observers_go_on_in_a_forked_process(open_app):
    read, write = os.pipe()
    app = await open_app(plugin("jobs_deferred", lambda: os.write(write, b"x")))
    app.hooks.observe("jobs_deferred", app=app, jobs=[], in_transaction=False)
    await asyncio.to_thread(observers.flush)
    if not (pid := os.fork()):
        app.hooks.observe("jobs_deferred", app=app, jobs=[], in_transaction=False)
        observers.flush()
        os._exit(0)
    await asyncio.to_thread(os.waitpid, pid, 0)
    assert os.read(read, 10) == b"xx"


def test_the_end_of_a_program_waits_for_observers(dsn, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        "from pyprocrastinate import App, SyncPsycopgConnector, hookimpl\n"
        "class Slow:\n"
        "    @hookimpl\n"
        "    def jobs_deferred(self, jobs):\n"
        "        time.sleep(0.3)\n"
        "        print(*(job.id for job in jobs))\n"
        "app = App(connector=SyncPsycopgConnector(sys.argv[1]), plugins=[Slow()])\n"
        "with app.open():\n"
        "    app.configure_task('t').defer()\n"
    )
    done = subprocess.run([sys.executable, program, dsn], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


# Loading


@pytest.mark.parametrize(
    ("hook", "function", "why"),
    [
        ("job_begun", lambda: None, "job_begun"),
        ("job_started", lambda jobs: None, "jobs"),
        ("job_started", lambda job, more: None, "more"),
    ],
)
async def test_an_unknown_hook_or_argument_is_an_error_at_the_start(dsn, monkeypatch, hook, function, why):
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "none")
    app = App(connector=PsycopgConnector(conninfo=dsn), plugins=[plugin(hook, function)])
    for start in (app.open, app.make_worker, lambda: app.configure_task("t")):
        with pytest.raises(PluginError, match=rf"(?s)plugin bad.*{why}"):
            start()
    with pytest.raises(PluginError):
        await app.open_async()


async def test_two_plugins_of_one_name_are_an_error(open_app):
    with pytest.raises(PluginError, match="plugin twice"):
        await open_app(*(plugin("job_started", lambda: None, "twice") for _ in range(2)))


SOURCE = """
from pyprocrastinate import hookimpl

@hookimpl
def job_started(job):
    pass
"""


def test_installed_plugins_are_found(install, monkeypatch):
    install("alpha", SOURCE)
    install("beta", SOURCE)
    assert Hooks().origins.items() >= {("alpha", "alpha 1.2"), ("beta", "beta 1.2")}
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "beta")
    assert Hooks().origins == {"beta": "beta 1.2"}
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "beta, alpha")
    assert Hooks().origins.keys() == {"alpha", "beta"}
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "none")
    assert Hooks([plugin("job_started", lambda: None, "mine")]).origins == {"mine": "the app"}


def test_a_plugin_that_is_not_installed_is_an_error(install, monkeypatch):
    install("alpha", SOURCE)
    monkeypatch.setenv("PROCRASTINATE_PLUGINS", "alhpa")
    with pytest.raises(PluginError, match=r"PROCRASTINATE_PLUGINS has alhpa; installed: .*alpha"):
        Hooks()


@pytest.mark.parametrize(
    ("source", "why"),
    [("import nowhere", "nowhere"), (SOURCE.replace("(job)", "(jobb)"), "jobb"), ("1 / 0", "ZeroDivisionError")],
)
def test_an_installed_plugin_that_is_wrong_is_an_error(install, source, why):
    install("broken", source)
    with pytest.raises(PluginError, match=rf"(?s)plugin broken, from broken 1.2.*{why}"):
        Hooks()


def test_a_broken_plugin_leaves_the_command_line_alone(install, command):
    install("broken", "import nowhere")
    shown = command("--help")
    assert shown.exit_code == 0
    assert "healthchecks" in shown.output
    assert "plugin broken" in shown.output


def test_the_command_lists_plugins_and_their_hooks(install, command, tmp_path):
    install("alpha", SOURCE)
    assert command("plugins").output == "alpha (alpha 1.2): job_started\n"
    (tmp_path / "listed_app.py").write_text(
        "from pyprocrastinate import App, PsycopgConnector\n"
        "import alpha_plugin as other\n"
        "class Mine:\n"
        "    wrap_job = staticmethod(__import__('pyprocrastinate').hookimpl(lambda: None))\n"
        "app = App(connector=PsycopgConnector(), plugins=[Mine()])\n"
    )
    expected = "alpha (alpha 1.2): job_started\nMine (the app): wrap_job\n"
    assert command("--app", "listed_app.app", "plugins").output == expected


async def test_each_call_can_be_traced(open_app, drain, status, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    plugins = good("job_started", [], "traced"), good("wrap_job", [], "too")
    await goes_well(await open_app(*plugins), drain, status)
    assert "Plugin traced" not in caplog.text
    monkeypatch.setenv("PROCRASTINATE_TRACE_HOOKS", "1")
    await goes_well(await open_app(*plugins), drain, status)
    assert "Plugin traced, job_started: called" in caplog.text
    assert "Plugin too, wrap_job: called" in caplog.text
