"""The tests. This file is imported before all other test modules, so that each of those is compiled only
once."""

import os
import sys

# Many tests start Python, and each start would compile inferd again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
