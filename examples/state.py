"""The state of the daemon; with `--watch`, its events until it ends.

python examples/state.py
"""

import sys

from inferd import AdminClient, Client, ConnectionLost, DaemonUnreachable


def main() -> int:
    try:
        if "--watch" in sys.argv:
            with AdminClient() as admin:
                for frame in admin.events():
                    print(frame, flush=True)
        with Client(timeout=5) as client:
            state = client.status()
    except DaemonUnreachable as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except ConnectionLost:
        return 0
    print(f"inferd {state.version}, {state.lifecycle['status']} for {state.uptime_secs:.0f} s")
    for backend in state.backends:
        print(f"{backend['name']} ({backend['kind']}), breaker {backend['breaker']}")
    print(f"{len(state.running)} of {state.active_permits} running, {len(state.waiting)} waiting")
    return 0


if __name__ == "__main__":
    sys.exit(main())
