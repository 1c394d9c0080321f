"""Tests the unmodified SDKs of other services, in two generations each, against a daemon with a real
model."""
