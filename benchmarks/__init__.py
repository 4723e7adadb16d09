"""
Measure this queue beside others, in one run on one machine.

`systems/` has a module for each queue, `workloads/` one for each thing that is measured, and
`harness.py` the server, the processes and the meters that they share.
"""
