"""The index of prefixes: a prompt's slot and start, and the choice of states to save or evict."""

from __future__ import annotations

from inferd.engine.local._llama import PrefixCache

HEAD = list(range(100, 400))
"""The head of a conversation, in tokens."""


def prompt(*tail: int) -> list[int]:
    return HEAD + list(tail)


def test_a_prompt_goes_where_its_longest_prefix_is() -> None:
    cache = PrefixCache(3, 0)
    cache.leave(0, HEAD[:50])
    cache.leave(1, prompt(1, 2))
    cache.leave(2, [7] * 500)
    slot, copy_from, restored, save, held, kept, tokens, miss = cache.plan(prompt(1, 2, 3, 4)) or ()
    assert (slot, copy_from, restored, save) == (1, -1, None, False)
    assert (held, kept, tokens, miss) == (302, 302, prompt(1, 2, 3, 4), "")


def test_scopes_never_share_and_the_reason_says_so() -> None:
    cache = PrefixCache(2, 1000)
    cache.leave(0, HEAD, scope=b"unix:1")
    cache.save(HEAD, size=10, scope=b"unix:1")
    plan = cache.plan(prompt(1), scope=b"unix:2")
    assert plan is not None
    assert (plan[0], plan[2], plan[4], plan[7]) == (1, None, 0, "other user")
    running = [(0, HEAD, 300, b"unix:1")]
    cache.take(0)
    plan = cache.plan(prompt(1), scope=b"unix:2", live=running)
    assert plan is not None
    assert (plan[1], plan[4]) == (-1, 0)


def test_a_request_that_opts_out_begins_with_nothing() -> None:
    cache = PrefixCache(2, 0)
    cache.leave(0, HEAD)
    plan = cache.plan(prompt(1), opted_out=True)
    assert plan is not None
    assert (plan[0], plan[4], plan[7]) == (1, 0, "opted out")


def test_a_head_that_is_being_computed_is_waited_for_and_then_copied() -> None:
    cache = PrefixCache(2, 0)
    cache.take(0)
    other = prompt(9, 9)
    assert cache.plan(prompt(1), live=[(0, other, 128, b"")]) is None
    plan = cache.plan(prompt(1), live=[(0, other, 302, b"")])
    assert plan is not None
    assert (plan[0], plan[1], plan[4]) == (1, 0, 300)


def test_another_conversation_with_the_same_head_keeps_the_first() -> None:
    cache = PrefixCache(2, 0)
    cache.leave(0, prompt(*range(40)))
    plan = cache.plan(prompt(*range(50, 90)))
    assert plan is not None
    assert (plan[0], plan[1], plan[4]) == (1, 0, 300)  # copied to the empty slot
    cache.take(1)
    cache.leave(1, [7] * 400)
    plan = cache.plan(prompt(*range(50, 90)))
    assert plan is not None
    assert (plan[0], plan[1], plan[3]) == (0, -1, False)  # no budget: in its place, and nothing can be saved

    cache = PrefixCache(1, 1000)
    cache.leave(0, prompt(*range(40)))
    plan = cache.plan(prompt(*range(50, 90)))
    assert plan is not None
    assert (plan[0], plan[3], plan[4]) == (0, True, 300)  # the only slot: it is saved first


def held_by_two(recent: list[int], **more: bytes) -> PrefixCache:
    """A cache whose slot 1 was used last and holds ``recent``."""
    cache = PrefixCache(2, 1000)
    cache.leave(0, [7] * 400, **more)
    assert cache.plan([8]) is not None  # time passes
    cache.leave(1, recent)
    return cache


def test_a_branch_takes_the_slot_that_is_unused_for_longest() -> None:
    plan = held_by_two(prompt(*range(1000, 1500))).plan(prompt(1))
    assert plan is not None
    assert (plan[0], plan[1], plan[3], plan[4]) == (0, 1, True, 300)


def test_a_branch_takes_the_slot_of_a_conversation_that_keeps_half_or_is_the_oldest() -> None:
    for cache in (held_by_two(prompt(*range(40))), held_by_two(prompt(*range(1000, 1500)), session=b"s")):
        plan = cache.plan(prompt(1))
        assert plan is not None
        assert (plan[0], plan[1], plan[3], plan[4]) == (1, -1, True, 300)


def test_a_long_slot_is_not_copied_for_a_short_head() -> None:
    for length, copied in ((16 * 32, True), (16 * 32 + 1, False)):
        for slots in (2, 3):  # the last one is empty
            cache = PrefixCache(slots, 0)
            cache.leave(0, [7] * 400)
            assert cache.plan([8]) is not None
            cache.leave(1, HEAD[:16] + [9] * (length - 16))
            plan = cache.plan(HEAD[:16] + [5] * 50)
            assert plan is not None
            assert (plan[0], plan[1], plan[4]) == ((0, 2)[slots - 2], *((1, 16) if copied else (-1, 0)))


def test_a_continued_conversation_may_drop_its_last_answer_unsaved() -> None:
    cache = PrefixCache(2, 1000)
    cache.leave(0, prompt(*range(40)), session=b"s")
    plan = cache.plan(prompt(*range(50, 90)), session=b"s")
    assert plan is not None
    assert (plan[0], plan[1], plan[3], plan[4]) == (0, -1, False, 300)


def test_the_least_recent_slot_gives_way_and_named_conversations_last() -> None:
    cache = PrefixCache(3, 1000)
    for slot, session in enumerate((b"named", b"", b"")):
        assert cache.plan([slot] * 64) is not None  # time passes
        cache.take(slot)
        cache.leave(slot, [slot] * 64, session=session)
    plan = cache.plan(prompt(1))
    assert plan is not None
    assert (plan[0], plan[3], plan[7]) == (1, True, "first")


def test_snapshots_stay_within_the_budget_and_the_oldest_goes() -> None:
    cache = PrefixCache(1, 100)
    assert cache.save([1] * 64, size=60)
    assert cache.save([2] * 64, size=40)
    assert not cache.save([3] * 64, size=101)
    assert cache.bytes == 100
    assert cache.save([4] * 64, size=40)
    assert cache.bytes == 80
    plan = cache.plan([1] * 64)
    assert plan is not None
    assert (plan[2], plan[7]) == (None, "evicted")
    plan = cache.plan([2] * 64)
    assert plan is not None
    assert (plan[2], plan[4]) == ([2] * 64, 64)


def test_a_longer_snapshot_replaces_its_prefix() -> None:
    cache = PrefixCache(1, 100)
    cache.save(HEAD, size=40)
    cache.save(prompt(1), size=41)
    assert cache.bytes == 41
    cache.save(prompt(1), size=41, scope=b"other")
    assert cache.bytes == 82


def test_a_file_is_brought_when_it_holds_more_than_all_else() -> None:
    cache = PrefixCache(1, 1000)
    cache.file(7, prompt(1, 2), size=10)
    cache.file(8, HEAD[:200], size=10)
    cache.file(9, prompt(1, 2, 3), size=1001)  # has no room in memory
    assert cache.plan(prompt(1, 2, 3)) == 7
    plan = cache.plan(prompt(1, 2, 3), may_fetch=False)
    assert isinstance(plan, tuple)
    assert plan[4] == 0
    assert isinstance(cache.plan(prompt(1, 2, 3), scope=b"other"), tuple)
    assert isinstance(cache.plan(prompt(1, 2, 3), opted_out=True), tuple)
    cache.leave(0, HEAD)  # the file has two tokens more
    assert isinstance(cache.plan(prompt(1, 2, 3)), tuple)


def test_a_prefix_in_a_file_needs_no_other_file() -> None:
    cache = PrefixCache(1, 1000)
    cache.file(7, HEAD, size=10, scope=b"a")
    assert cache.filed(HEAD[:100], scope=b"a")
    assert not cache.filed(prompt(1), scope=b"a")
    assert not cache.filed(HEAD[:100], scope=b"b")
    assert cache.filed(HEAD[:10], scope=b"b")  # too short for one
    whole = PrefixCache(1, 1000, any_cut=False)
    whole.file(7, HEAD, size=10)
    assert whole.filed(HEAD)
    assert not whole.filed(HEAD[:100])


def test_a_file_of_another_model_is_the_reason_of_a_miss() -> None:
    cache = PrefixCache(1, 1000)
    cache.file(7, HEAD, size=10, usable=False)
    plan = cache.plan(prompt(1))
    assert isinstance(plan, tuple)
    assert (plan[2], plan[7]) == (None, "model")


def test_a_model_that_cannot_be_cut_uses_whole_sequences_only() -> None:
    cache = PrefixCache(2, 100, any_cut=False)
    cache.leave(0, prompt(1, 2))
    plan = cache.plan(prompt(1, 3))
    assert plan is not None
    assert (plan[4], plan[7]) == (0, "first")
    plan = cache.plan(prompt(1, 2, 3))
    assert plan is not None
    assert (plan[0], plan[4]) == (0, 302)


def test_a_prompt_that_differs_early_has_changed() -> None:
    cache = PrefixCache(1, 0)
    cache.leave(0, HEAD)
    plan = cache.plan(HEAD[:40] + [7] * 260)
    assert plan is not None
    assert (plan[4], plan[7]) == (40, "changed")


# Tokens that are other ids for the same text. 0 is a control token.
PIECES = [b"", b"a", b"b", b"ab", b"c", b"bc", b"<end>"]


def same(held: list[int], asked: list[int], n_max: int = 1000) -> tuple[int, int, list[int]]:
    cache = PrefixCache(1, 0, pieces=PIECES)
    cache.leave(0, held)
    plan = cache.plan(asked, n_max=n_max)
    assert plan is not None
    return plan[4:7]


def test_equal_text_keeps_the_tokens_that_were_generated() -> None:
    head = [4] * 20
    assert same([*head, 1, 2, 4], [*head, 3, 4, 0]) == (23, 22, [*head, 1, 2, 4, 0])
    # They match again only where both have a token boundary.
    assert same([*head, 1, 5, 0, 4], [*head, 3, 4, 0, 4, 4]) == (24, 24, [*head, 1, 5, 0, 4, 4])
    assert same([*head, 1, 5], [*head, 3, 1]) == (20, 20, [*head, 3, 1])


def test_no_text_passes_for_a_control_token() -> None:
    head = [4] * 20
    assert same([*head, 0, 1], [*head, 6, 1]) == (20, 20, [*head, 6, 1])


def test_kept_tokens_never_make_a_prompt_too_long() -> None:
    head = [4] * 20
    asked = [*head, 3, 3, 3]
    assert same([*head, 1, 2, 1, 2], asked, n_max=24) == (20, 20, asked)
    assert same([*head, 1, 2, 1, 2], asked, n_max=25) == (24, 22, [*head, 1, 2, 1, 2, 3])
