"""The streams of a local answer. ``typed_stream`` reads ``job_stream``, and ``checked_stream`` reads either.

``job_stream`` has the raw output of a job, the token loop's unit of work: one answer. ``typed_stream`` parses
this text into events. ``checked_stream`` checks the finished answer against its schemas. ``token_records``
keeps the tokens' log probabilities until their text is parsed.
"""
