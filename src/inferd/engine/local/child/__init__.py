"""The engine process of a model: its supervisor, its messages and its sandbox.

The modules ``supervisor``, ``stream``, ``process``, ``spawned``, ``jobs`` and ``suspects`` run in the daemon;
``host``, ``load``, ``turns`` and ``cage`` run in the engine process. Both processes use ``messages`` and
``link``.
"""
