"""The process of a model: how the daemon starts it, watches it and talks to it, and what shuts it in."""
