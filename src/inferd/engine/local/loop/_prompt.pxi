# Renders prompts with llama.cpp's chat templates, and parses answers. Part of _llama.pyx.

cdef str refusal_of_template(const string& error):
    """Returns the template's own error message, without the interpreter's stack."""
    cdef str words = in_a_sentence(error)
    return words.rpartition("Error: ")[2] if "While executing" in words else words


cdef class Templates:
    """The model's chat templates. ``source`` (Jinja) replaces them unless it is empty."""

    cdef Model model
    cdef unique_ptr[Prompts] prompts

    def __cinit__(self, Model model, str source=""):
        cdef string error
        cdef string c_source = source.encode()
        self.model = model
        with nogil:
            self.prompts = Prompts.make(model.model, c_source, error)
        if not self.prompts:
            raise ModelError(f"the model's chat template cannot be parsed: {in_a_sentence(error)}")

    @property
    def thinking(self) -> bool:
        """Whether the template can turn the model's thinking on and off."""
        return self.prompts.get().supports_thinking()

    @property
    def tools(self) -> bool:
        """Whether the template describes tools to the model."""
        return self.prompts.get().supports_tools()

    @property
    def calls(self) -> bool:
        """Whether the template shows the calls of earlier turns."""
        return self.prompts.get().supports_calls()

    @property
    def several_calls(self) -> bool:
        """Whether the template shows more than the first call of a turn."""
        return self.prompts.get().supports_several_calls()

    @property
    def nested_arguments(self) -> bool:
        """Whether the template shows objects and arrays among the arguments of a call."""
        return self.prompts.get().supports_nested_arguments()

    def render(self, bytes request, Projector projector=None, items=(), int n_batch=0, kept=()) -> Prompt:
        """Renders and tokenises a conversation. ``request`` is JSON with the keys that prompt.h lists.

        ``items`` lists the images and sounds of the conversation as (kind, encoded, width, height, buffer);
        ``projector`` encodes them. ``n_batch`` is the maximum number of tokens in a step of the engine. ``kept`` lists
        the answers in the conversation whose tokens are known, as (length of the prompt before the answer, hash of
        that prompt, token ids). Raises ``InvalidRequest`` if the template or the projector refuses the conversation.
        """
        cdef string text = request, error
        cdef MediaInput media
        cdef MediaItem item
        cdef vector[KeptAnswer] answers
        cdef KeptAnswer answer
        cdef const unsigned char[::1] data
        cdef const llama_token* ids
        cdef Prompt prompt = Prompt()
        cdef cbool ok
        if projector is not None:
            media.projector = projector.projector.get()
            media.n_batch = n_batch
            for kind, item.encoded, item.width, item.height, data in items:  # `items` keeps the buffers alive
                item.audio = kind == "audio"
                item.data, item.size = &data[0], data.shape[0]
                media.items.push_back(item)
        for answer.at, answer.hash, tokens in kept:
            ids = <const llama_token*><const char*>tokens
            answer.tokens.assign(ids, ids + len(tokens) // sizeof(llama_token))
            answers.push_back(answer)
        with nogil:
            ok = self.prompts.get().render(text, media, answers, prompt.rendered, error)
        if not ok:
            raise InvalidRequest(
                f"the conversation cannot be given to the model: {refusal_of_template(error)}")
        return prompt

    def raw(self, bytes text, suffix=None) -> Prompt:
        """Returns a prompt without a template. With a ``suffix``, the model fills in the text between ``text`` and
        ``suffix``.

        Raises ``InvalidRequest`` for a ``suffix`` if the model has no tokens for filling in.
        """
        cdef string c_text = text, c_suffix = suffix or b"", error
        cdef const string* behind = NULL
        cdef Prompt prompt = Prompt()
        cdef cbool ok
        if suffix is not None:
            behind = &c_suffix
        with nogil:
            ok = self.prompts.get().raw(c_text, behind, prompt.rendered, error)
        if not ok:
            raise InvalidRequest(in_a_sentence(error))
        return prompt


cdef class Prompt:
    """A rendered conversation: its token ids, and the data that constrains and parses the answer."""

    cdef Rendered rendered

    def __len__(self):
        return self.rendered.tokens.size()

    @property
    def tokens(self):
        """The token ids, as a list."""
        return self.rendered.tokens

    @property
    def last_turn(self) -> int:
        """The number of tokens before the last message whose text the template shows unchanged, or 0 if there is
        none."""
        return self.rendered.turns.back() if self.rendered.turns.size() else 0

    def head(self, size_t n) -> Prompt:
        """Returns the first ``n`` tokens as a separate prompt without a grammar."""
        cdef Prompt prompt = Prompt()
        prompt.rendered.tokens.assign(self.rendered.tokens.begin(), self.rendered.tokens.begin() + n)
        return prompt

    @property
    def text(self):
        """The length and the hash of the text that was tokenised."""
        return self.rendered.length, self.rendered.hash

    @property
    def media(self):
        """The (position among the tokens, embeddings) of each image or sound, in the order of the prompt."""
        return [(span.at, tuple(span.embeddings)) for span in self.rendered.media]

    @property
    def grammar(self) -> bytes:
        """The GBNF of the family's tool calls or output format, or empty if nothing constrains the answer."""
        return self.rendered.grammar

    @property
    def triggers(self):
        """The (words, token ids) that begin a call, or ``None`` if llama.cpp knows no such words."""
        if self.rendered.trigger_words.empty():
            return None
        return self.rendered.trigger_words, self.rendered.trigger_tokens

    @property
    def thinks(self) -> bool:
        """Whether the model was asked to think first."""
        return self.rendered.thinks

    @property
    def thinking(self):
        """The (start marker, end markers) of the family's thinking as bytes, empty if it has none."""
        return self.rendered.think_start, self.rendered.think_ends

    @property
    def syntax(self) -> bytes:
        """The parser of the answer in JSON, for ``Reply``."""
        return self.rendered.syntax


cdef class Reply:
    """Parses a growing answer in the format of its model family. The parts are text, thinking and tool calls."""

    cdef unique_ptr[CReply] reply

    def __cinit__(self, bytes syntax, *, bint places=False):
        cdef string error
        self.reply = CReply.make(syntax, places, error)
        if not self.reply:
            raise ValueError(error.decode("utf-8", "replace"))

    def feed(self, bytes text, *, bint last):
        """Returns the new parts after more text, as JSON (see reply.h), or ``None`` if the answer cannot be parsed."""
        cdef string c_text = text, news, error
        cdef cbool ok
        with nogil:
            ok = self.reply.get().feed(c_text, last, news, error)
        return <bytes>news if ok else None
