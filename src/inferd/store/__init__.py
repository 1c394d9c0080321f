"""The model store: the catalogue, downloads and verification of models, and the locks of the store and the
daemon.

``catalogue`` lists the models with a short name. ``models`` defines the layout of the store on disk.
``fetch`` downloads a model from ``sources`` (``https``, ``wheel``) through ``partial``, and ``verify`` checks
and opens its file. ``pinning`` finds the sha256 of a source that a user names. ``upkeep`` removes models and
unused files. ``runtime`` makes directories and locks.
"""
