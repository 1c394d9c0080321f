"""Answers held to a schema: rules for llguidance, the formats of model families, and the last check."""
