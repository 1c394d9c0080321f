"""Code shared by the writers of model files."""

from __future__ import annotations

import gguf


def copy_keys(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, prefix: str = "") -> None:
    """Copies the keys that begin with ``prefix``, except those that the writer itself adds."""
    for field in reader.fields.values():
        if field.name.startswith(prefix) and not field.name.startswith(("GGUF.", "general.architecture")):
            writer.add_key_value(field.name, field.contents(), *field.types[:2])


def write_file(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
