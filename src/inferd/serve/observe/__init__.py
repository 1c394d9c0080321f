"""The daemon's metrics, the snapshot of running and queued requests, and their publication."""
