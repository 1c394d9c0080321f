"""The surfaces: how the requests of each wire reach a backend, and how the frames of the answer are
written."""
