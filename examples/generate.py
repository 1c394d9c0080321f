"""Stream an answer to the terminal, and retry while the daemon is busy.

python examples/generate.py "Why is the sky blue?"
"""

import sys
import time

from inferd import Client, Done, RequestFailed, dial_and_wait_ready

ATTEMPTS = 5


def answer(client: Client, question: str) -> Done:
    with client.generate(question, max_tokens=200, temperature=0.3) as events:
        for event in events:
            if isinstance(event, Done):
                print()
                return event
            print(event.content, end="", flush=True)
    raise AssertionError("a reply ends with Done or an error")


def main() -> None:
    question = sys.argv[1] if len(sys.argv) > 1 else "Name three rivers."
    with dial_and_wait_ready(limit_secs=60) as client:
        for attempt in range(ATTEMPTS):
            try:
                done = answer(client, question)
                break
            except RequestFailed as error:
                if not error.retryable or attempt == ATTEMPTS - 1:
                    raise
                time.sleep(2**attempt)
    print(f"{done.completion_tokens} tokens, {done.stop_reason}, by {done.model}", file=sys.stderr)


if __name__ == "__main__":
    main()
