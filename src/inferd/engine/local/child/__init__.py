"""The engine process of a model: its supervisor, its messages and its sandbox."""
