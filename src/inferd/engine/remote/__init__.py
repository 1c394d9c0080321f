"""Backends that use a model server over the network."""
