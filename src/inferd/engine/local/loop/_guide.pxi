# Answers constrained to a schema or a grammar by llguidance. Part of _llama.pyx.

from libcpp.memory cimport shared_ptr


cdef extern from *:
    int popcount "__builtin_popcount"(unsigned int word) nogil


def open_guidance(str library) -> str:
    """Loads llguidance from the library with its C interface, once; returns its version.

    Raises ``ModelError`` if a function is missing.
    """
    cdef string path = library.encode(), version, error
    cdef cbool ok
    with nogil:
        ok = c_open_guidance(path, version, error)
    if not ok:
        raise ModelError(f"llguidance cannot be used: {in_a_sentence(error)}; install the version that inferd requires")
    return version.decode()


cdef class Guidance:
    """A model's vocabulary for llguidance; call ``open_guidance`` first."""

    cdef Model model
    cdef shared_ptr[GuidanceVocab] guided

    def __cinit__(self, Model model):
        self.model = model
        self.guided.reset(new GuidanceVocab(model.vocab))

    def guide(self, bytes kind, bytes grammar) -> Guide:
        """A guide for a ``json_schema`` or a ``lark`` grammar. Raises ``ValueError`` with llguidance's reason, and
        ``InvalidRequest`` when the preparation is cancelled.
        """
        cdef Guide made = Guide()
        cdef string text = grammar, error
        cdef const char* name = kind
        made.model = self.model
        with nogil:
            made.guide = CGuide.make(self.guided, name, text, error)
        if not made.guide:
            if is_cancelled():
                raise InvalidRequest(in_a_sentence(error))
            raise ValueError(in_a_sentence(error))
        made.stop = made.guide.get().stop()
        return made


cdef class Guide:
    """The position of one answer in a grammar; ``Engine.submit`` consumes it."""

    cdef Model model
    cdef unique_ptr[CGuide] guide
    cdef shared_ptr[GuideStop] stop

    def wait_for(self, words, tokens):
        """Allows every token until the answer contains one of the ``words`` (bytes) or ``tokens``."""
        self.guide.get().wait_for(words, tokens)

    def accept_text(self, bytes text) -> bool:
        """Advances by a text; false if the grammar does not allow it."""
        cdef string c_text = text
        cdef cbool fits
        with nogil:
            fits = self.guide.get().accept_text(c_text)
        return fits

    def allows(self, llama_token token) -> bool:
        """Whether the token may come next."""
        return self.guide.get().allows(token)

    def accept(self, llama_token token) -> bool:
        """Advances by a token; false if it is not allowed."""
        return self.guide.get().accept(token)

    def forced(self):
        """The token ids that the grammar forces next."""
        return self.guide.get().forced()

    def choices(self) -> int:
        """How many tokens may come next."""
        cdef const uint32_t* mask
        cdef int word, count = 0
        with nogil:
            mask = self.guide.get().mask()
        if mask != NULL:
            for word in range((llama_vocab_n_tokens(self.model.vocab) + 31) // 32):
                count += popcount(mask[word])
        return count

    @property
    def stopped(self) -> bool:
        """Whether a cancel has ended it, also after ``Engine.submit`` has consumed it."""
        return self.stop.get().stopped()

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self.guide.get().accepting()

    @property
    def complete(self) -> bool:
        """Whether only the end can follow."""
        return self.guide.get().complete()
