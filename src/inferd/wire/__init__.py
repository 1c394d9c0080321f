"""What stands on the wire: types, validation and encoding of every surface. No I/O and no socket in here."""
