"""The APIs. Each module converts the body of a request to a request to the daemon, and the events of the
answer to bytes."""
