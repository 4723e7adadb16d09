"""What the functions of the hot path tell the planner."""

from __future__ import annotations


def test_who_forbids_sequential_scans_forbids_their_compilation_too(db):
    """
    Before PostgreSQL 18 a scan that is forbidden and unavoidable costs 10,000,000,000.

    That is above the threshold for JIT, which then takes 100 ms and more for each statement.
    """
    functions = db.rows("""
        select oid::regprocedure::text as name, 'jit=off' = any (proconfig) as ok from pg_proc
         where pronamespace = 'procrastinate'::regnamespace
           and 'enable_seqscan=off' = any (proconfig)
    """)
    assert "work_v1" in str(functions)
    assert [function.name for function in functions if not function.ok] == []
