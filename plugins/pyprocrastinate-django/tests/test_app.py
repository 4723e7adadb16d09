"""The app: what it can do before Django is ready, and what the settings make of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from django.apps import apps
from django.core.checks import run_checks
from django.test.utils import override_settings

from pyprocrastinate import Blueprint
from pyprocrastinate.contrib import django as contrib
from pyprocrastinate_django import DjangoApp, models
from pyprocrastinate_django.exceptions import DjangoNotReady


@pytest.fixture
def fresh() -> DjangoApp:
    """Return an app as it is when the modules of a project are imported."""
    return DjangoApp()


def on_ready(app: DjangoApp) -> None:
    app.ready_with = app.connector  # type: ignore[attr-defined]


def test_tasks_can_be_declared_at_once(fresh: DjangoApp) -> None:
    @fresh.periodic(cron="* * * * *")
    @fresh.task(name="a")
    def task(timestamp: int) -> int:
        return timestamp

    blueprint = Blueprint()
    blueprint.task(name="b")(str)
    fresh.add_tasks_from(blueprint, namespace="n")
    fresh.add_task_alias(task, "c")
    assert {"a", "n:b", "c"} <= fresh.tasks.keys()
    assert task(3) == 3
    deferrals: list[Any] = [
        task.defer,
        task.configure,
        fresh.open,
        fresh.perform_import_paths,
        lambda: fresh.configure_task("a"),
        lambda: fresh.job_manager,
        fresh.make_worker,
    ]
    for call in deferrals:
        with pytest.raises(DjangoNotReady, match=r"django\.setup\(\)"):
            call()
    fresh.get_ready()
    assert fresh.configure_task("a").connector is fresh.connector


def test_without_settings(fresh: DjangoApp) -> None:
    fresh.get_ready()
    assert fresh.connector.alias == "default"  # type: ignore[attr-defined]
    assert fresh.import_paths == ["bookshop.tasks"]
    assert (fresh.worker_defaults, fresh.periodic_defaults, fresh.log_args) == ({}, {}, True)


@override_settings(
    PROCRASTINATE_AUTODISCOVER_MODULE_NAME="models",
    PROCRASTINATE_DATABASE_ALIAS="other",
    PROCRASTINATE_IMPORT_PATHS=["bookshop.urls"],
    PROCRASTINATE_LOG_ARGS=False,
    PROCRASTINATE_ON_APP_READY=f"{__name__}.on_ready",
    PROCRASTINATE_PERIODIC_DEFAULTS={"max_delay": 3},
    PROCRASTINATE_WORKER_DEFAULTS={"concurrency": 7},
)
def test_with_settings(fresh: DjangoApp) -> None:
    fresh.get_ready()
    assert fresh.connector.alias == "other"  # type: ignore[attr-defined]
    assert {"bookshop.models", "bookshop.urls"} <= set(fresh.import_paths)
    assert (fresh.worker_defaults, fresh.periodic_defaults) == ({"concurrency": 7}, {"max_delay": 3})
    assert fresh.log_args is False
    assert fresh.ready_with is fresh.connector  # type: ignore[attr-defined]


def test_a_test_can_have_an_app_of_its_own(dsn: str) -> None:
    own = DjangoApp(connector=contrib.app.connector, worker_defaults={"wait": False, "install_signal_handlers": False})
    ran: list[int] = []

    @own.task(name="u")
    def task(a: int) -> None:
        ran.append(a)

    task.defer(a=1)
    own.run_worker()
    assert ran == [1]
    assert "u" not in contrib.app.tasks


@override_settings(PROCRASTINATE_AUTODISCOVER_MODULE_NAME=None)
def test_nothing_need_be_discovered(fresh: DjangoApp) -> None:
    fresh.get_ready()
    assert fresh.import_paths == []


def test_settings_are_checked(dsn: str) -> None:
    assert run_checks() == []
    with override_settings(PROCRASTINATE_DATABASE_ALIAS="other", PROCRASTINATE_READONLY_MODELS=False):
        assert [message.id for message in run_checks()] == ["procrastinate.E001", "procrastinate.W001"]
    with override_settings(PROCRASTINATE_DATABASE_ALIAS="nowhere"):
        assert [message.id for message in run_checks()] == ["procrastinate.E001"]


def test_names_are_procrastinates() -> None:
    from pyprocrastinate.contrib.django.apps import ProcrastinateConfig
    from pyprocrastinate.contrib.django.exceptions import DjangoNotReady as NotReady
    from pyprocrastinate.contrib.django.models import ProcrastinateJob
    from pyprocrastinate.contrib.django.procrastinate_app import current_app

    config = apps.get_app_config("procrastinate")
    assert type(config) is ProcrastinateConfig
    assert NotReady is DjangoNotReady
    assert apps.get_model("procrastinate", "ProcrastinateJob") is ProcrastinateJob is models.ProcrastinateJob
    assert isinstance(contrib.app, contrib.DjangoApp)
    assert current_app is contrib.app


def test_without_the_distribution_it_is_said_what_to_install() -> None:
    code = "import sys; sys.modules['pyprocrastinate_django'] = None; import pyprocrastinate.contrib.django"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError" in done.stderr
    assert done.stderr.rstrip().endswith("pip install 'pyprocrastinate[django]'")


def test_a_program_that_forgets_setup_is_told() -> None:
    code = "from pyprocrastinate.contrib.django import app; app.task(print).defer()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "DjangoNotReady: Django is not ready" in done.stderr
