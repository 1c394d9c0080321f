"""The daemon's lifecycle: boot, build the backends, open the sockets, reload, drain, stop."""
