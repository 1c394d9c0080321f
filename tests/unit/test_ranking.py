"""Scores of documents by a cross-encoder with random weights, and the format of its input pair."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from inferd.engine.requests import Message, RankRequest
from inferd.errors import BackendInternal, EmbedUnsupported, InvalidRequest, RerankUnsupported, Unsupported
from tests.requests import generate_request
from tests.tiny_bert import CLS, CONTEXT, MASK, SEP, word, write_bert
from tests.unit.test_embedding import Held, ids, raw, serving, vectors


def cross_encoder(tmp_path: Path, template: str | None = None) -> Path:
    return write_bert(tmp_path / "ranker", pooling=gguf.PoolingType.RANK, template=template)


async def test_documents_are_scored_in_their_order(tmp_path: Path) -> None:
    documents = tuple(f"{letter} {letter} ?" for letter in "abcdefghij" * 12)
    async with serving(cross_encoder(tmp_path)) as model:
        made = await model.rank(RankRequest("a b", documents))
        assert len(made.scores) == len(documents)
        assert made.input_tokens == len(documents) * 8
        assert len(set(made.scores[:10])) == 10
        for i in (0, 3, 9, 64, 119):
            alone = await model.rank(RankRequest("a b", (documents[i],)))
            assert alone.scores[0] == pytest.approx(made.scores[i], abs=1e-4)
            assert made.scores[i] == pytest.approx(made.scores[i % 10], abs=1e-4)
        other = await model.rank(RankRequest("x y", documents[:1]))
        assert abs(other.scores[0] - made.scores[0]) > 1e-3


def test_a_pair_is_put_between_separators(tmp_path: Path) -> None:
    embedder = raw(cross_encoder(tmp_path))
    query, document = [word("q"), word("?")], [word("d"), word(".")]
    assert ids(embedder.pair(b"q ?", b"d .")) == [CLS, *query, SEP, *document, SEP]
    assert ids(embedder.pair(b"[SEP]", b"d")).count(SEP) == 2


def test_a_template_of_the_model_decides_on_the_pair(tmp_path: Path) -> None:
    embedder = raw(cross_encoder(tmp_path, "a{document}[MASK]b: {query}!"))
    document = [word("d"), word(".")]
    expected = [CLS, word("a"), *document, MASK, word("b"), word(":"), word("q"), word("!")]
    assert ids(embedder.pair(b"q", b" d.")) == expected
    tokens = ids(embedder.pair(b"[MASK] {document}", b"{query}"))
    assert tokens.count(MASK) == 1
    assert word("d") not in tokens  # what is put in is not a template itself


async def test_a_pair_beyond_the_model_is_refused(tmp_path: Path) -> None:
    async with serving(cross_encoder(tmp_path)) as model:
        with pytest.raises(
            InvalidRequest, match=rf"documents\[1\] with the query is 54 tokens long .* context is {CONTEXT}"
        ):
            await model.rank(RankRequest("a", ("a", "b " * 50)))
        assert len((await model.rank(RankRequest("a", ("b",)))).scores) == 1


async def test_a_score_that_is_not_a_number_is_a_failure(tmp_path: Path) -> None:
    async with serving(cross_encoder(tmp_path)) as model:
        held = Held(model)
        held.pair = held.embedder.pair  # type: ignore[attr-defined]
        held.compute = lambda sequences: np.full(1, np.inf, "<f4").tobytes()  # type: ignore[method-assign]
        with pytest.raises(BackendInternal, match="not finite"):
            await model.rank(RankRequest("a", ("b",)))


async def test_each_kind_of_model_does_its_own(tmp_path: Path) -> None:
    chat = generate_request(
        messages=(Message("user", "hi"),), max_tokens=1, temperature=0.0, top_p=1.0, top_k=0
    )
    async with serving(cross_encoder(tmp_path)) as model:
        assert (model.capabilities().embed, model.capabilities().rerank) == (False, True)
        with pytest.raises(EmbedUnsupported):
            await vectors(model, "a")
        with pytest.raises(Unsupported, match="cannot generate"):
            await model.generate(chat)
    async with serving(write_bert(tmp_path / "m")) as model:
        assert (model.capabilities().embed, model.capabilities().rerank) == (True, False)
        with pytest.raises(RerankUnsupported):
            await model.rank(RankRequest("a", ("b",)))
        with pytest.raises(Unsupported, match="cannot generate"):
            await model.generate(chat)
