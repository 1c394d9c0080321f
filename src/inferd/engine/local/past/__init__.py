"""What a model keeps for the next request of a conversation: its answers' tokens, its date, its next
prompt."""
