# The Cython declarations of native/prompt/, which renders prompts and parses answers.

from libc.stdint cimport uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from inferd.engine.local.loop.core_h cimport CProjector, MediaItem, MediaSpan
from inferd.engine.local.loop.llama_h cimport llama_model, llama_token

cdef extern from "native/prompt/prompt.h" namespace "inferd" nogil:
    cdef cppclass MediaInput:
        const CProjector* projector
        int n_batch
        vector[MediaItem] items
    cdef cppclass KeptAnswer:
        size_t at
        uint64_t hash
        vector[llama_token] tokens
    cdef cppclass Rendered:
        size_t length
        uint64_t hash
        vector[llama_token] tokens
        vector[MediaSpan] media
        vector[size_t] turns
        vector[string] stops
        string grammar
        cbool lazy
        vector[string] triggers
        vector[llama_token] trigger_tokens
        vector[string] trigger_words
        cbool thinks
        string think_start
        vector[string] think_ends
        vector[llama_token] prefill
        vector[llama_token] preserved
        string syntax
    cdef cppclass Prompts:
        @staticmethod
        unique_ptr[Prompts] make(const llama_model* model, const string& source, string& error)
        cbool render(
            const string& request, const MediaInput& media, const vector[KeptAnswer]& kept, Rendered& out, string& error
        )
        cbool raw(const string& text, const string* suffix, Rendered& out, string& error)
        cbool supports_thinking()
        cbool supports_tools()
        cbool supports_calls()
        cbool supports_several_calls()
        cbool supports_nested_arguments()
    void silence_common()


cdef extern from "native/prompt/reply.h" namespace "inferd" nogil:
    cdef cppclass CReply "inferd::Reply":
        @staticmethod
        unique_ptr[CReply] make(const string& syntax, cbool places, string& error)
        cbool feed(const string& text, cbool last, string& news, string& error)
