"""The events of an answer: the text of a job, its blocks, and their check against a schema."""
