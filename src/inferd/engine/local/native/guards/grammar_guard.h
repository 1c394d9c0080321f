// Compiled into llama.cpp's grammar engine by a forced include, ahead of its own text.
//
// A grammar comes from a client, and that engine was written for grammars one trusts: a failed assertion ends
// the process, a parse error is printed with the grammar to stderr, and an ambiguous grammar can take longer
// than the age of the universe to refuse one token. Here assertions throw, messages are kept for the one who
// asked, and matching looks at the clock now and then and throws when its time is up.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>

#include "ggml.h"
#include "grammar_guard_state.h"

namespace inferd {

// Stands for fprintf: parse errors are printed as (function, reason, ...); the rest are printers nobody calls.
template <typename... Rest>
void keep_grammar_message(std::FILE *, const char *, const char *, const char *reason, Rest...) {
    // The reason may quote all the rest of the grammar.
    grammar_message = std::string(reason).substr(0, 80);
}
template <typename... Any>
void keep_grammar_message(std::FILE *, const char *, Any...) {}

inline void grammar_step(bool holds) {
    if (!holds) throw std::runtime_error("the grammar engine met a state it does not handle");
    static thread_local unsigned steps = 0;
    if (++steps % 256 == 0 && thread_time() > grammar_deadline) {
        throw std::runtime_error("the grammar is too ambiguous");
    }
}

}  // namespace inferd

#undef GGML_ASSERT
#undef GGML_ABORT
#define GGML_ASSERT(...) inferd::grammar_step(static_cast<bool>(__VA_ARGS__))
#define GGML_ABORT(...) inferd::grammar_step(false)
#define fprintf inferd::keep_grammar_message
