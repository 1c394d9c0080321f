"""The HTTP bridge, which serves the APIs of OpenAI, Anthropic and Ollama for a running daemon.

The bridge runs in a separate process, and is an ordinary client of the daemon. ``server`` starts the bridge,
``app`` routes requests, ``api`` translates bodies and answers without I/O, and ``upstream`` talks to the
daemon. The package is imported only if the bridge is used. The bridge needs the packages of the extra
``inferd[http]``.
"""
