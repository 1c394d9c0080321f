"""A conversation: each line of stdin is a question, and each answer takes the earlier ones into account.

printf 'My name is Ada.\nWhat is my name?\n' | python examples/chat.py
"""

import sys

from inferd import Client, Text

with Client() as client:
    chat = client.chat("Answer in one sentence.", temperature=0.3, max_tokens=100)
    for line in sys.stdin:
        with chat.ask(line.strip()) as answer:
            for event in answer:
                if isinstance(event, Text):
                    print(event.text, end="", flush=True)
        print()
    print(f"{len(chat.turns)} turns", file=sys.stderr)
