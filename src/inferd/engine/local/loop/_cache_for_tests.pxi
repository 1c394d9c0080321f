# A Python class over the native prefix cache, for tests without a model. The token loop uses the C++ class.
# Part of _llama.pyx.


cdef class PrefixCache:
    """The prefix cache of prefix_cache.h. Its states have a ``size`` and no content.

    ``pieces`` lists the text of each token of the vocabulary. The text of a control token is empty.
    """

    cdef CPrefixCache* cache

    def __cinit__(self, int slots, size_t budget, *, bint any_cut=True, pieces=()):
        cdef vector[string] texts = pieces
        self.cache = new CPrefixCache(slots, budget, any_cut, pieces_of(texts))

    def __dealloc__(self):
        del self.cache

    @property
    def bytes(self) -> int:
        """The size of all snapshots and checkpoints in bytes."""
        return self.cache.bytes()

    def plan(self, prompt, *, bytes scope=b"", bytes session=b"", bint opted_out=False, bint may_fetch=True, live=(),
             n_max=1 << 30):
        """Plans where to begin with ``prompt``, whose tokens may all be reused. ``live`` lists the running jobs as
        (slot, tokens, n_past, scope).

        Returns ``None`` if the job must wait, or the id of a file to load first. Otherwise returns (slot, slot to copy
        from or -1, tokens of the snapshot to load or ``None``, whether to save the slot first, number of tokens kept,
        number of prompt tokens that they replace, the prompt with the kept tokens, reason of a miss).
        """
        cdef vector[llama_token] tokens = prompt
        cdef vector[vector[llama_token]] all_tokens = [each[1] for each in live]
        cdef vector[string] scopes = [each[3] for each in live]
        cdef string c_scope = scope, c_session = session
        cdef vector[Live] running
        cdef Live one
        cdef Wanted wanted
        cdef Plan plan
        wanted.prompt = &tokens
        wanted.n_reusable = tokens.size()
        wanted.n_max = n_max
        wanted.scope = &c_scope
        wanted.session = &c_session
        wanted.opted_out = opted_out
        wanted.may_fetch = may_fetch
        for i, each in enumerate(live):
            one.slot = each[0]
            one.tokens = &all_tokens[i]
            one.n_past = each[2]
            one.scope = &scopes[i]
            one.shared = True
            running.push_back(one)
        plan = self.cache.plan(wanted, running)
        if plan.wait:
            return plan.fetch or None
        return (plan.slot, plan.copy_from, plan.restore.get().sequence.tokens if plan.restore else None, plan.save,
                plan.keep.held, plan.keep.prompt, plan.prompt if plan.prompt.size() else tokens,
                MISS_NAMES[<int>plan.miss])

    def take(self, int slot):
        self.cache.take(slot)

    def leave(self, int slot, tokens, *, bytes scope=b"", bytes session=b""):
        cdef Sequence sequence
        sequence.tokens = tokens
        sequence.scope = scope
        sequence.session = session
        self.cache.leave(slot, move(sequence))

    def save(self, tokens, *, size_t size, bytes scope=b"", bytes session=b"") -> bool:
        """Keeps a state of ``size`` bytes. Returns false if it is larger than the budget."""
        cdef Sequence sequence
        sequence.tokens = tokens
        sequence.scope = scope
        sequence.session = session
        if not self.cache.reserve(size):
            return False
        self.cache.add(move(sequence), unique_ptr[StateBytes](), size)
        return True

    def file(self, uint32_t id, tokens, *, size_t size, bytes scope=b"", bint usable=True):
        """Registers a file with the state of ``tokens``."""
        cdef Stored stored
        stored.id = id
        stored.size = size
        stored.sequence.tokens = tokens
        stored.sequence.scope = scope
        if usable:
            self.cache.add_file(move(stored))
        else:
            self.cache.outdated(stored.sequence)

    def filed(self, tokens, *, bytes scope=b"") -> bool:
        """Returns whether a file contains all of ``tokens``."""
        cdef Sequence sequence
        sequence.tokens = tokens
        sequence.scope = scope
        return self.cache.filed(sequence)
