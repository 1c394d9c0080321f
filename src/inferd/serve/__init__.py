"""Serves requests, from the accepted socket to the finished answer: listeners, sessions, queues, routing and
status."""
