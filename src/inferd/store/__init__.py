"""The model store: the catalogue of models, and the download, verification and removal of models.

``catalogue`` lists the models that have a short name. ``models`` defines the layout of the store on disk.
``fetch`` downloads a missing model. ``sources`` (``https``, ``wheel``) defines where files come from, and
``partial`` writes a download in progress. ``verify`` checks and opens the files of a model. ``pinning`` finds
the sha256 of a source that a user names. ``upkeep`` removes models and unused files. ``foreign`` finds the
models of other programs. ``gguf`` reads the header of a model file. ``states`` keeps the KV caches of earlier
prompts in files. ``runtime`` makes directories and locks, for the store and for the daemon.
"""
