"""The demo: `pyprocrastinate demo`, or `PYTHONPATH=examples python -m demo` in a checkout."""
