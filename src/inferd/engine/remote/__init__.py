"""Models that answer elsewhere, over HTTP."""
