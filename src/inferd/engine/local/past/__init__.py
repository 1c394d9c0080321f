"""Data that a model keeps for a conversation's next request: answers' tokens, the date, the next prompt."""
