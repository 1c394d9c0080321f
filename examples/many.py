"""Several questions at once with asyncio. A question that takes too long is cancelled, which frees its slot.

python examples/many.py "Name a river." "Name a hill." "Name a lake."
"""

import asyncio
import sys

from inferd import AsyncClient, RequestFailed

SECONDS = 60.0


async def ask(client: AsyncClient, question: str) -> str:
    try:
        # Cancelling the task closes the reply, which cancels the request in the daemon.
        done = await asyncio.wait_for(client.generate(question, max_tokens=50).result(), SECONDS)
    except asyncio.TimeoutError:
        return "(took too long)"
    except RequestFailed as error:
        return f"({error})"
    return done.content


async def main() -> None:
    questions = sys.argv[1:] or ["Name a river.", "Name a hill."]
    async with AsyncClient() as client:
        answers = await asyncio.gather(*(ask(client, question) for question in questions))
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question} {answer}")


if __name__ == "__main__":
    asyncio.run(main())
