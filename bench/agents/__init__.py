"""Coding agents against a daemon whose backend answers by a script: each has to make one correct edit."""
