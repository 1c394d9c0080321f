"""The surfaces v1, v2, embed and rerank. A surface converts a client's request into a backend request, and
writes the frames of the answer."""
