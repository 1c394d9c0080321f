"""Find the lines of stdin closest in meaning to a query; with `--rerank` a ranking model scores them.

inferd serve --embed --model-path embedding-model.gguf
python examples/search.py "big cats" < animals.txt
"""

import sys

from inferd import Client


def by_vectors(client: Client, query: str, lines: list[str]) -> list[tuple[float, str]]:
    documents = client.embed(lines, task="retrieval_document").embeddings
    (wanted,) = client.embed(query, task="retrieval_query").embeddings
    # All vectors have length 1, so this is the cosine of the angle between them.
    scores = [sum(a * b for a, b in zip(wanted, vector, strict=True)) for vector in documents]
    return sorted(zip(scores, lines, strict=True), reverse=True)


def by_ranking(client: Client, query: str, lines: list[str]) -> list[tuple[float, str]]:
    return [(ranked.score, lines[ranked.index]) for ranked in client.rerank(query, lines).results]


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--rerank"]
    if len(arguments) != 1:
        sys.exit(f"usage: {sys.argv[0]} [--rerank] QUERY")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    find = by_ranking if "--rerank" in sys.argv else by_vectors
    with Client() as client:
        for score, line in find(client, arguments[0], lines)[:5]:
            print(f"{score:.3f}  {line}")


if __name__ == "__main__":
    main()
