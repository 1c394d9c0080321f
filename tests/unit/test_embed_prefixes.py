"""The prefix that models of a family need before a text to embed."""

from __future__ import annotations

import pytest

from inferd.engine.local.embed_prefixes import prefixes
from tests.cases import cases

QUERIES = ("retrieval_query", "question_answering", "fact_verification", "code_retrieval_query")
TASKS = (*QUERIES, "retrieval_document", "similarity", "classification", "clustering")


@cases(
    "architecture, name, task, prefix",
    [
        ("gemma-embedding", "Embeddinggemma 300m", "retrieval_query", "task: search result | query: "),
        ("gemma-embedding", "", "retrieval_document", "title: none | text: "),
        ("gemma-embedding", "", "code_retrieval_query", "task: code retrieval | query: "),
        ("bert", "E5 Small v2", "retrieval_query", "query: "),
        ("bert", "multilingual-e5-base", "retrieval_document", "passage: "),
        ("bert", "intfloat_e5-large", "similarity", "query: "),
        ("nomic-bert", "nomic-embed-text-v1.5", "retrieval_query", "search_query: "),
        ("nomic-bert-moe", "Nomic Embed Text v2 MoE", "retrieval_document", "search_document: "),
        ("nomic-bert", "Nomic Embed Text v1", "clustering", "clustering: "),
        (
            "bert",
            "bge-small-en-v1.5",
            "retrieval_query",
            "Represent this sentence for searching relevant passages: ",
        ),
        ("bert", "Bge Base Zh v1.5", "question_answering", "为这个句子生成表示以用于检索相关文章："),  # noqa: RUF001
    ],
)
def test_a_family_is_known_by_architecture_and_name(
    architecture: str, name: str, task: str, prefix: str
) -> None:
    assert prefixes(architecture, name)[task] == prefix


@cases(
    "architecture, name",
    [
        ("bert", "all-MiniLM-L6-v2"),
        ("bert", ""),
        ("bert", "Bge M3"),
        ("bert", "Multilingual E5 Large Instruct"),
        ("bert", "some5model"),
        ("llama", "E5 Mistral 7B"),
        ("nomic-bert", "Snowflake Arctic Embed M Long"),
        ("gemma3", "Gemma 3 270m"),
    ],
)
def test_other_models_get_no_prefix(architecture: str, name: str) -> None:
    assert prefixes(architecture, name) == {}


@pytest.mark.parametrize("known", [("gemma-embedding", ""), ("bert", "e5"), ("nomic-bert", "nomic embed")])
def test_a_family_with_all_prefixes_knows_every_task(known: tuple[str, str]) -> None:
    assert set(prefixes(*known)) == set(TASKS)


def test_bge_marks_only_queries() -> None:
    assert set(prefixes("bert", "bge small en")) == set(QUERIES)
