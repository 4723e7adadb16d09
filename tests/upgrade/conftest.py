"""
Two tools for tests of upgrades: a copy of `sql/` that a test may change, and a dump of a schema.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

import pyprocrastinate_migrate
from pyprocrastinate import _sqlfiles
from pyprocrastinate.protocol import PROTOCOL

RETIRE = f"select procrastinate._raise_oldest({PROTOCOL + 1});"

# One line for everything that the schema holds. Order of columns counts, their numbers do not.
DUMP = """
with relation as (select c.* from pg_class as c where c.relnamespace = 'procrastinate'::regnamespace)
select 'schema ' || concat_ws(' ', nspname, nspacl, obj_description(oid, 'pg_namespace'))
  from pg_namespace where nspname = 'procrastinate'
union all
select 'relation ' || concat_ws(
    ' ', relname, relkind, relpersistence, relrowsecurity, relreplident, reloptions, relacl, obj_description(oid))
  from relation
union all
select 'column ' || concat_ws(
    ' ', r.relname, row_number() over (partition by r.oid order by a.attnum), a.attname,
    format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated, a.attacl,
    a.attcollation::regcollation, a.attstattarget, a.attstorage, pg_get_expr(d.adbin, d.adrelid),
    col_description(r.oid, a.attnum))
  from relation as r
  join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
  left join pg_attrdef as d on d.adrelid = r.oid and d.adnum = a.attnum
union all
select 'constraint ' || concat_ws(
    ' ', conrelid::regclass, conname, convalidated, pg_get_constraintdef(oid), obj_description(oid))
  from pg_constraint where connamespace = 'procrastinate'::regnamespace
union all
select 'index ' || concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisvalid, i.indisready)
  from pg_index as i join relation as r on r.oid = i.indexrelid
union all
select 'view ' || r.relname || ' ' || pg_get_viewdef(r.oid) from relation as r where relkind in ('v', 'm')
union all
select 'trigger ' || pg_get_triggerdef(t.oid)
  from pg_trigger as t join relation as r on r.oid = t.tgrelid where not t.tgisinternal
union all
select 'sequence ' || concat_ws(
    ' ', r.relname, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
  from pg_sequence as s join relation as r on r.oid = s.seqrelid
union all
select 'function ' || pg_get_functiondef(oid) || concat_ws(' ', proacl, obj_description(oid, 'pg_proc'))
  from pg_proc where pronamespace = 'procrastinate'::regnamespace
union all
select 'type ' || concat_ws(' ', typname, typtype, typacl, obj_description(oid, 'pg_type'))
  from pg_type where typnamespace = 'procrastinate'::regnamespace
union all
select 'default privileges ' || concat_ws(' ', defaclobjtype, defaclacl)
  from pg_default_acl where defaclnamespace = 'procrastinate'::regnamespace
union all
select 'setting ' || to_jsonb(c)::text from procrastinate.config as c
union all
select 'protocols ' || p::text from procrastinate.protocol() as p
union all
select 'applied ' || concat_ws(' ', number, stage, slug, checksum) from procrastinate.migration
order by 1
"""


@pytest.fixture
def dump() -> Callable[[str], list[str]]:
    """Return a function that tells all of the schema of a database, in an order of its own."""

    def dump(dsn: str) -> list[str]:
        with psycopg.connect(dsn) as conn:
            return [line for (line,) in conn.execute(DUMP).fetchall()]

    return dump


class Release:
    """A release to come: `sql/` as it is, and what a test adds to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        shutil.copytree(_sqlfiles.sql_dir(), folder)
        monkeypatch.setattr(_sqlfiles, "sql_dir", lambda: folder)

    def add(self, name: str, text: str) -> Path:
        """Write a file, for instance `migrations/pre/9001_more.sql`."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    def speaks_the_next_protocol(self) -> None:
        """Let the functions serve the next protocol, too, and the post stage retire ours."""
        path = self.folder / "functions" / "01_protocol.sql"
        text = path.read_text("utf-8")
        ours = f"set newest = {PROTOCOL} where newest < {PROTOCOL};"
        assert ours in text
        path.write_text(text.replace(ours, ours.replace(str(PROTOCOL), str(PROTOCOL + 1))), "utf-8")
        self.add("migrations/post/9001_retire.sql", RETIRE)
        self.is_called("99.0")

    def is_called(self, version: str) -> None:
        """Give the release its version."""
        self._monkeypatch.setattr(pyprocrastinate_migrate, "version", lambda _: version)


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """Return a release that the test may change and that `migrate` takes for the installed one."""
    return Release(tmp_path / "sql", monkeypatch)
