"""The unmodified SDKs of other services, of two generations each, against a daemon with a real model."""
