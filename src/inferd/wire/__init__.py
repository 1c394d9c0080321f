"""The wire formats: types, validation and encoding of every surface, without I/O."""
