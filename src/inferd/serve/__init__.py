"""From an accepted socket to a finished answer: listening, sessions, admission, routing, status."""
