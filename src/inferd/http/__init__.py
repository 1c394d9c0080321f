"""The HTTP bridge serves the APIs of OpenAI, Anthropic and Ollama for a running daemon.

It runs in a separate process and is an ordinary client of the daemon. ``server`` starts it, ``app`` routes
requests, ``api`` translates bodies and answers without I/O, ``upstream`` talks to the daemon. It is imported
only on demand and needs the packages of the extra ``inferd[http]``.
"""
