"""
Measure this queue beside others, in one run on one machine.

`systems/` has a module for each queue, `workloads/` one for each thing that is measured, `servers.py`
and `children.py` what they run on and in, `harness.py` how each is measured, `targets.py` what is to
be reached, and `report.py` and `charts.py` what is shown of it.
"""


class BenchmarkError(Exception):
    """A measurement that must not count; the message says why."""
