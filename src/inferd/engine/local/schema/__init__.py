"""Constrains answers to a JSON Schema: grammars for llguidance, the formats of model families, and the final
check."""
