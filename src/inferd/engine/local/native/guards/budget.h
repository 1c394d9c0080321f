// What a chat template or a sound may use.
//
// A template is a program that came with a model file, and llama.cpp's interpreter runs it without a bound: a loop
// over a large range or a string multiplied by a large number would take all memory, and a macro that calls itself
// would end the process. A small file of sound can have days of it. While a `Budget` lives, its thread is held to so
// much memory, and a template to so much processor time and stack; what goes beyond throws, from `new` (strings.cpp has
// strings use it, too) or from the steps that template_guard.h puts into the interpreter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

namespace inferd {

class Budget {
  public:
    // One at a time in a thread; `too_much` is the reason given when there are more than `max_bytes` at once.
    Budget(int64_t max_bytes, const char *too_much) noexcept;
    ~Budget();
    Budget(const Budget &) = delete;
    Budget &operator=(const Budget &) = delete;

    // Throws when the budget was passed, even if what was thrown then has been caught.
    void check() const;
};

// That of a template which is given `input` bytes.
int64_t template_bytes(size_t input);

// What `body` returns, made within a budget; a breach is told as such, whatever became of its exception.
template <typename Body>
auto within(const Budget &budget, Body body) {
    try {
        auto made = body();
        budget.check();
        return made;
    } catch (const std::exception &) {
        budget.check();
        throw;
    }
}

template <typename Body>
auto within_template_budget(size_t input, Body body) {
    return within(Budget(template_bytes(input), "the chat template takes too much memory"), body);
}

// Throws when the budget of this thread, if it has one, is used up in time or depth.
void spend_step();

// Throws for the source of a template that the parser cannot be trusted with: it recurses on brackets and chains.
void check_template_source(const std::string &source);

}  // namespace inferd
