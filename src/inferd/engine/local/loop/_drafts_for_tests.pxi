# Python classes over the native speculative decoding, for tests without a token loop. The token loop uses the C++
# classes. Part of _llama.pyx.


cdef class Drafter:
    """Drafts the continuation of an answer and estimates whether the draft pays. See drafts.h."""

    cdef CDrafter drafter
    cdef Model model

    def __cinit__(self, Model model):
        self.model = model

    def look(self, tokens, forced=()):
        """Drafts the continuation of ``tokens`` and returns it. If ``forced`` is not empty, the draft is
        ``forced``."""
        self.drafter.look(self.model.vocab, tokens, forced)
        return self.drafter.draft()

    def came(self, tokens):
        """Reports that the answer continued with the last of ``tokens``."""
        self.drafter.came(tokens)

    def unsure(self) -> bool:
        """Returns whether a draft model is more likely to be right than this draft."""
        return self.drafter.unsure()

    def take(self, of_model):
        """Replaces the draft by the draft of a draft model, and returns it."""
        self.drafter.take(self.model.vocab, of_model)
        return self.drafter.draft()

    def promising(self, int sequences, size_t most) -> int:
        """Returns how many tokens of the draft are likely to be accepted."""
        return self.drafter.promising(sequences, most)

    def worth(self, ThreadGovernor governor, int sequences, int rows, size_t most) -> int:
        """Returns how many tokens of the draft are worth the time that they take."""
        return self.drafter.worth(governor.governor[0], sequences, rows, most)


cdef class DraftEarnings:
    """Measures whether the drafts of a draft model pay. See draft_model.h."""

    cdef Earnings earnings

    def due(self) -> bool:
        return self.earnings.due()

    def add(self, double cost, double saved):
        self.earnings.add(cost, saved)
