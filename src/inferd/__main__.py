"""Runs the command ``inferd`` as ``python -m inferd``."""

import sys

from inferd.cli import main

sys.exit(main())
