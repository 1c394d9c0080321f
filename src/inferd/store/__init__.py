"""Model files: which there are, where they lie, and how they come there; and the lock of the daemon.

``catalogue`` names models, ``models`` lays them out on disk, ``sources`` brings one, ``fetch`` puts the three
together, ``runtime`` makes directories and locks.
"""
