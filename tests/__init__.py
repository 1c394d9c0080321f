"""The tests. This file is imported before everything that they need, so that all of that is compiled once."""

import os
import sys

# Many tests start Python, and each start would compile inferd again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
