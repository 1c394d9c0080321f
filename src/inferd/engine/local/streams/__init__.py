"""The streams of a local answer, which wrap each other.

``job_stream`` yields the raw output of one job, which is the token loop's work for one answer.
``typed_stream`` wraps a ``job_stream`` and parses the raw output into events. ``checked_stream`` wraps either
of the two and checks the finished answer against its schemas. ``token_records`` keeps the log probabilities
of tokens until the text is parsed.
"""
