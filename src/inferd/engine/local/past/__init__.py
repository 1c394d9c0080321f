"""State kept for a conversation's next request: the tokens of its answers, its date, its next prompt."""
