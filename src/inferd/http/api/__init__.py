"""The APIs, one module each: pure functions from a body to a request and from events to bytes."""
