"""The surfaces: how each wire's requests reach a backend, and how its frames are written."""
