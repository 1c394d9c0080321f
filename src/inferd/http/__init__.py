"""The HTTP bridge: OpenAI's, Anthropic's and Ollama's APIs in front of a running daemon.

It is a process of its own and an ordinary client of the daemon: ``server`` starts it, ``app`` routes a
request, ``api`` translates bodies and answers without any I/O, ``upstream`` talks to the daemon. Loaded only
on demand; it needs the packages of the extra ``inferd[http]``.
"""
