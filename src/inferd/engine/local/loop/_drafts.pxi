# Speculative decoding as a Python class, without a token loop. Part of _llama.pyx.


cdef class Drafter:
    """Drafts the continuation of an answer and weighs its cost; see drafts.h."""

    cdef CDrafter drafter
    cdef Model model

    def __cinit__(self, Model model):
        self.model = model

    def look(self, tokens, forced=()):
        """Drafts the continuation of ``tokens``, which is ``forced`` unless that is empty; returns the draft."""
        self.drafter.look(self.model.vocab, tokens, forced)
        return self.drafter.draft()

    def came(self, tokens):
        """The answer continued with the last of ``tokens``."""
        self.drafter.came(tokens)

    def unsure(self) -> bool:
        """Whether a draft model is more likely to be right."""
        return self.drafter.unsure()

    def take(self, of_model):
        """Replaces the draft by that of a draft model; returns it."""
        self.drafter.take(self.model.vocab, of_model)
        return self.drafter.draft()

    def promising(self, int sequences, size_t most) -> int:
        """How many tokens of the draft are likely to be accepted."""
        return self.drafter.promising(sequences, most)

    def worth(self, ThreadGovernor governor, int sequences, int rows, size_t most) -> int:
        """How many tokens of the draft are worth their time."""
        return self.drafter.worth(governor.governor[0], sequences, rows, most)


cdef class DraftEarnings:
    """Whether the drafts of a model pay; see draft_model.h."""

    cdef Earnings earnings

    def due(self) -> bool:
        return self.earnings.due()

    def add(self, double cost, double saved):
        self.earnings.add(cost, saved)
