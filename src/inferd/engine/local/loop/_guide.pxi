# Answers constrained to a schema or a grammar by llguidance. Part of _llama.pyx.

from libcpp.memory cimport shared_ptr


cdef extern from *:
    int popcount "__builtin_popcount"(unsigned int word) nogil


def open_guidance(str library) -> str:
    """Loads llguidance from the shared library with its C interface, at the first call. Returns its version.

    Raises ``ModelError`` if the library or one of its functions is missing.
    """
    cdef string path = library.encode(), version, error
    cdef cbool ok
    with nogil:
        ok = c_open_guidance(path, version, error)
    if not ok:
        raise ModelError(f"llguidance cannot be used: {in_a_sentence(error)}; install the version that inferd requires")
    return version.decode()


cdef class Guidance:
    """A model's vocabulary for llguidance. Call ``open_guidance`` before."""

    cdef Model model
    cdef shared_ptr[GuidanceVocab] guided

    def __cinit__(self, Model model):
        self.model = model
        self.guided.reset(new GuidanceVocab(model.vocab))

    def guide(self, bytes kind, bytes grammar) -> Guide:
        """Returns a guide for a grammar of this ``kind``: ``json_schema`` or ``lark``. Raises ``ValueError`` with
        llguidance's reason if it refuses the grammar, and ``InvalidRequest`` if the request is cancelled.
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
    """The state of one answer in a grammar, which decides what tokens may come next. ``Engine.submit`` consumes the
    guide."""

    cdef Model model
    cdef unique_ptr[CGuide] guide
    cdef shared_ptr[GuideStop] stop

    def wait_for(self, words, tokens):
        """Allows every token until one of ``words`` (bytes) or ``tokens`` appears in the answer."""
        self.guide.get().wait_for(words, tokens)

    def accept_text(self, bytes text) -> bool:
        """Advances by a text. Returns false if the grammar does not allow it."""
        cdef string c_text = text
        cdef cbool fits
        with nogil:
            fits = self.guide.get().accept_text(c_text)
        return fits

    def allows(self, llama_token token) -> bool:
        """Returns whether the token may come next."""
        return self.guide.get().allows(token)

    def accept(self, llama_token token) -> bool:
        """Advances by a token. Returns false if the grammar does not allow it."""
        return self.guide.get().accept(token)

    def forced(self):
        """Returns the ids of the tokens that must come next, because the grammar allows no others."""
        return self.guide.get().forced()

    def choices(self) -> int:
        """Returns how many tokens may come next."""
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
        """Whether a cancel has ended the guide. Works also after ``Engine.submit`` has consumed it."""
        return self.stop.get().stopped()

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""
        return self.guide.get().accepting()

    @property
    def complete(self) -> bool:
        """Whether the answer must end here."""
        return self.guide.get().complete()
