"""Runs the HTTP bridge as ``python -m inferd.http``, the command with which the daemon starts the bridge."""

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
