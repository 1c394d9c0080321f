"""The model store: catalogue, downloads, verification; and the daemon's lock.

``catalogue`` names models; ``models`` is the layout on disk. ``fetch`` downloads from ``sources``
(``https``, ``wheel``) through ``partial``, and ``verify`` opens the file. ``pinning`` turns a user's source
into a pinned model, ``upkeep`` removes models and unused files, ``runtime`` makes directories and locks.
"""
