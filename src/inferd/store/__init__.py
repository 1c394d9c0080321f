"""The model store: the catalogue, downloads, verification and removal of models, computed prompts on disk,
and the locks of the store and the daemon.

``catalogue`` lists the models with a short name. ``models`` defines the layout of the store on disk.
``fetch`` downloads a model from ``sources`` (``https``, ``wheel``) through ``partial``, and ``verify`` checks
and opens its file. ``pinning`` finds the sha256 of a source that a user names. ``upkeep`` removes models and
unused files. ``foreign`` finds the models of other programs. ``gguf`` reads the header of a model file.
``states`` keeps computed prompts. ``runtime`` makes directories and locks.
"""
