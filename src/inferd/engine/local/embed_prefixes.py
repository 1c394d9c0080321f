"""The prefixes of embedding models, by family and task.

Some embedding models were trained with a short instruction before each text. Without the instruction, their
vectors are worse. The keys ``general.architecture`` and ``general.name`` of the model file identify the
family. A text gets no prefix if the family is unknown, if the family has none for the task, or if the request
names no task.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

_QUERIES = ("retrieval_query", "question_answering", "fact_verification", "code_retrieval_query")

_EMBEDDING_GEMMA = {
    "retrieval_query": "task: search result | query: ",
    "retrieval_document": "title: none | text: ",
    "similarity": "task: sentence similarity | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "question_answering": "task: question answering | query: ",
    "fact_verification": "task: fact checking | query: ",
    "code_retrieval_query": "task: code retrieval | query: ",
}
_E5 = {
    **dict.fromkeys((*_QUERIES, "similarity", "classification", "clustering"), "query: "),
    "retrieval_document": "passage: ",
}
_NOMIC = {
    **dict.fromkeys(_QUERIES, "search_query: "),
    **dict.fromkeys(("similarity", "classification"), "classification: "),
    "retrieval_document": "search_document: ",
    "clustering": "clustering: ",
}
_BGE_ENGLISH = dict.fromkeys(_QUERIES, "Represent this sentence for searching relevant passages: ")
_BGE_CHINESE = dict.fromkeys(_QUERIES, "为这个句子生成表示以用于检索相关文章：")  # noqa: RUF001

# Patterns of the architecture and of the name, in lower case with single spaces between words. The
# instruction-tuned E5 and BGE-M3 are other families: they take a sentence from the user, or no prefix.
_FAMILIES = (
    (r"gemma-embedding", r"", _EMBEDDING_GEMMA),
    (r"bert", r"\be5\b(?!.*\binstruct\b)", _E5),
    (r"nomic-bert|nomic-bert-moe", r"\bnomic embed\b", _NOMIC),
    (r"bert", r"\bbge\b.*\ben\b", _BGE_ENGLISH),
    (r"bert", r"\bbge\b.*\bzh\b", _BGE_CHINESE),
)


def prefixes(architecture: str, name: str) -> Mapping[str, str]:
    """Returns the prefixes of a model by the name of the task. ``architecture`` and ``name`` come from the
    model file."""
    words = " ".join(re.split(r"[\W_]+", name.lower())).strip()
    for architectures, pattern, found in _FAMILIES:
        if re.fullmatch(architectures, architecture) and re.search(pattern, words):
            return MappingProxyType(found)
    return MappingProxyType({})
