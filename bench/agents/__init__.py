"""Tests coding agents against a daemon with a scripted backend: each agent must make one correct edit."""
