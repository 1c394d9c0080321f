"""``python -m inferd`` is the command ``inferd``."""

import sys

from inferd.cli import main

sys.exit(main())
