"""The streams of a local answer, each around the one before.

``job_stream`` has the raw output of a job, the token loop's unit of work: one answer. ``typed_stream`` parses
this text into events. ``checked_stream`` checks the finished answer against its schemas. ``token_records``
keeps the tokens' log probabilities until their text is parsed.
"""
