"""
The queue's schema as a step of `manage.py migrate`.

A release has a migration for each stage of `pyprocrastinate.migrate`, whether or not it changes anything: the first
adds, and is safe while the workers of the release before run; the second removes.
Each brings the database to the release that is installed, not to the one that it was written for, and does nothing
where that was done before.
"""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation

from pyprocrastinate import migrate
from pyprocrastinate_django import conf
from pyprocrastinate_django.connector import DjangoConnector


class MigrateSchema(Operation):
    """
    Apply one stage, in transactions of its own: the migration has to be `atomic = False`.

    `sqlmigrate` shows what is yet to be applied to this database, as a script for psql.
    """

    reversible = False

    def __init__(self, stage: migrate.Stage) -> None:
        self.stage = stage

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Do nothing: the models are views."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        alias = schema_editor.connection.alias
        if alias != conf.database_alias() or not router.allow_migrate(alias, app_label):
            return
        conninfo = DjangoConnector(alias).address()
        if schema_editor.collect_sql:
            steps = [step for step in migrate.plan(conninfo) if (step.stage == "post") == (self.stage == "post")]
            schema_editor.collected_sql.append(migrate.script(steps))
        else:
            migrate.migrate(conninfo, stage=self.stage)

    def describe(self) -> str:
        return f"Apply the {self.stage} stage of the schema procrastinate"
