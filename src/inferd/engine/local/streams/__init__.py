"""The streams of a local answer: the text of a job, its parsing into events, and its check against a
schema."""
