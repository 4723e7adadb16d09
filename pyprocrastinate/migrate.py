"""Creating and upgrading the schema, which the distribution `pyprocrastinate-migrate` brings."""

from pyprocrastinate_migrate import MigrationError, Stage, Step, get_schema, migrate, plan, script

__all__ = ["MigrationError", "Stage", "Step", "get_schema", "migrate", "plan", "script"]
