"""Constants that the client shares with the daemon. This module imports nothing, so that a client starts
quickly."""

WIRE_VERSION = 1
"""The version of the protocol in length-prefixed frames (:mod:`inferd.wire.framed`)."""

JSON, BLOB = 1, 2
"""The kinds of length-prefixed frames."""

MAX_ATTACHMENTS = 32
"""The largest number of attachments of one request."""

QUEUE_STEPS = ("queued", "started")
"""The phases of a ``progress`` frame that are about the queue. All other phases are about loading the
model."""

PRIORITIES = ("interactive", "batch")

MAX_SAMPLING_NUMBER = 100.0
"""Far above any useful value; keeps float32 arithmetic on logits finite."""

MAX_TOKENS = 1000
"""The token limit of a local model for a request that sets none. The engines have it from
:mod:`inferd.sampling`, which takes longer to import."""
