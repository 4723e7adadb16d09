"""Runs the demo on the folder that is named, or on Python's own sources."""

import sys

from demo.program import main

sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None, None))
