"""What a conversation keeps for its next request: the tokens of its answers, its date, its next prompt."""
