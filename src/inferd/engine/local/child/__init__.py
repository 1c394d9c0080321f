"""The engine process of a model: its supervisor, its messages and its sandbox.

The daemon runs ``supervisor``, ``process``, ``jobs`` and ``suspects``. The engine's process runs ``host``,
``load``, ``turns`` and ``cage``. Both use ``messages`` and ``link``.
"""
