"""The APIs. The modules convert the body of an HTTP request to a request to the daemon, and the events of the
daemon's answer to bytes."""
