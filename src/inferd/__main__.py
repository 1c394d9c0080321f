"""Makes ``python -m inferd`` run the command ``inferd``."""

import sys

from inferd.cli import main

sys.exit(main())
