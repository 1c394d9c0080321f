"""Answers constrained to a schema: grammars for llguidance, formats of model families, and the final
check."""
