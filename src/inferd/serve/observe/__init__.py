"""Metrics, the snapshot of running and queued requests, and how both are published."""
