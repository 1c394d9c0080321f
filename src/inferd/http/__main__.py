"""Runs the bridge as ``python -m inferd.http``, the command by which the daemon starts it."""

import atexit
import gc
import sys

from inferd.errors import InferdError
from inferd.http.server import main

if __name__ == "__main__":
    atexit.register(gc.freeze)  # to free the modules one by one takes longer than the rest of the exit
    try:
        sys.exit(main())
    except InferdError as error:
        sys.stderr.write(f"inferd: {error}\n")
        sys.exit(error.exit_code)
