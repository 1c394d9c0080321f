"""The wire formats of all surfaces: their types, their validation and their encoding. Nothing here
does I/O."""
