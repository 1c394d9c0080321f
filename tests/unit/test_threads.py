"""The choice of threads, on a simulated machine with a simulated clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from inferd.engine.local._llama import ThreadGovernor

MS = 1000  # µs


class Machine:
    """Runs steps that take ``cost(threads)`` ms: decode steps of one sequence, or prompt steps of ``prompt``
    tokens."""

    def __init__(
        self, threads: int, cost: Callable[[int], float], fixed: bool = False, prompt: int = 0
    ) -> None:
        self.rows, self.prompt = (0, prompt) if prompt else (1, 0)
        self.governor = ThreadGovernor(threads, fixed, 4)
        self.governor.set_single_thread_baseline(50 * MS)
        self.cost = cost
        self.now = 0
        self.cut_off = 0
        self.steps = 0

    def run(self, seconds: float) -> None:
        end = self.now + seconds * 1000 * MS
        while self.now < end:
            deadline = self.governor.deadline(self.now, self.rows, self.prompt)
            elapsed = int(self.cost(self.governor.threads) * MS)
            if deadline and self.now + elapsed > deadline:
                self.now = deadline
                self.cut_off += 1
                self.governor.stalled(self.now)
            else:
                self.now += elapsed
                self.steps += 1
                self.governor.measured(self.now, self.rows, self.prompt, elapsed)


def quiet(threads: int) -> float:
    return 40 / threads


def crowded(threads: int) -> float:
    """Another program computes on every core: threads that wait for each other make little progress."""
    return 1200 if threads > 1 else 50


def test_a_quiet_machine_uses_all_its_threads() -> None:
    machine = Machine(4, quiet)
    machine.run(60)
    assert machine.governor.threads == 4
    assert machine.cut_off == 0


def test_clearly_useful_threads_are_kept_for_a_while() -> None:
    machine = Machine(4, quiet)
    counts = set()
    machine.cost = lambda threads: counts.add(threads) or quiet(threads)  # type: ignore[func-returns-value]
    machine.run(9)
    assert counts == {4}
    machine.run(9)
    assert counts == {2, 4}


def test_a_stalled_step_is_cut_off_and_fewer_threads_are_tried() -> None:
    machine = Machine(4, quiet)
    machine.run(1)
    machine.cost = crowded
    machine.run(2)
    assert machine.governor.threads == 1
    assert 0 < machine.cut_off < 6


@pytest.mark.parametrize("prompt", [0, 10])
def test_looking_up_again_costs_little_while_the_machine_stays_crowded(prompt: int) -> None:
    machine = Machine(2, quiet, prompt=prompt)
    machine.run(1)
    machine.cost = crowded
    machine.run(1)
    before = machine.steps
    machine.run(100)
    assert machine.steps - before > 0.95 * 100_000 / crowded(1)


@pytest.mark.parametrize("prompt", [0, 10])
def test_the_threads_come_back_when_the_machine_is_quiet_again(prompt: int) -> None:
    machine = Machine(4, quiet, prompt=prompt)
    machine.run(1)
    machine.cost = crowded
    machine.run(5)
    machine.cost = quiet
    machine.run(130)
    assert machine.governor.threads == 4


def test_where_answers_are_decoded_only_decode_steps_try_more_threads() -> None:
    for decoded, threads in ((0, 2), (1, 1)):
        governor = ThreadGovernor(2, False, 4)
        governor.stalled(0)
        for _ in range(decoded):
            governor.measured(0, 1, 0, 50 * MS)
        governor.measured(10_000 * MS, 0, 10, 50 * MS)
        assert governor.threads == threads


def test_a_prompt_keeps_one_thread_where_two_are_slower() -> None:
    machine = Machine(2, quiet, prompt=10)
    machine.run(1)
    machine.cost = crowded
    machine.run(5)
    machine.cost = lambda threads: 60 if threads > 1 else 50
    machine.run(130)
    assert machine.governor.threads == 1


def test_fewer_threads_are_kept_where_they_are_faster() -> None:
    machine = Machine(8, lambda threads: 10 if threads == 4 else 20)
    machine.run(300)
    assert machine.governor.threads == 4


def test_a_configured_count_is_never_changed() -> None:
    machine = Machine(4, quiet, fixed=True)
    machine.run(1)
    machine.cost = crowded
    machine.run(20)
    assert machine.governor.threads == 4
    assert machine.cut_off == 0


def test_a_first_prompt_may_take_the_time_of_one_thread_at_most() -> None:
    governor = ThreadGovernor(2, False, 4)
    assert governor.deadline(0, 0, 36) == 0  # nothing to compare with
    governor.set_single_thread_baseline(20 * MS)
    assert governor.deadline(1000, 0, 36) == 1000 + 36 * 20 * MS
    governor.measured(0, 0, 100, 200 * MS)
    assert governor.deadline(1000, 0, 36) == 1000 + 8 * 36 * 2 * MS


def test_one_thread_is_never_cut_off() -> None:
    governor = ThreadGovernor(1, False, 4)
    governor.set_single_thread_baseline(1)
    assert governor.deadline(0, 1, 512) == 0


def test_short_prompts_follow_each_other_for_as_long_as_a_chunk_of_a_long_one_takes() -> None:
    governor = ThreadGovernor(1, True, 4)
    assert governor.fits(0, 14)
    assert not governor.fits(1, 14)  # the time of a prompt token is not known yet
    governor.measured(0, 0, 14, 14 * MS)
    assert governor.chunk() == 50
    assert governor.fits(14 * MS, 36)
    assert not governor.fits(14 * MS, 37)
    assert governor.fits(0, 10_000)  # the first chunk of a turn, however long the prompt is


def test_a_chunk_advances_its_prompt_on_a_slow_machine() -> None:
    governor = ThreadGovernor(1, True, 4)
    governor.measured(0, 0, 10, 1000 * MS)
    assert governor.chunk() == 16
