// What a chat template may use.
//
// A template is a program that came with a model file, and llama.cpp's interpreter runs it without a bound: a loop
// over a large range or a string multiplied by a large number would take all memory, and a macro that calls itself
// would end the process. While a `Budget` lives, its thread is held to so much memory, processor time and stack; what
// goes beyond throws from the functions of jinja/bounds.h, which patches/templates.patch has the interpreter call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace inferd {

class Budget {
  public:
    // That of a template which is given `input` bytes; one at a time in a thread.
    explicit Budget(size_t input) noexcept;
    ~Budget();
    Budget(const Budget &) = delete;
    Budget &operator=(const Budget &) = delete;

    // Throws when the budget was passed, even if what was thrown then has been caught.
    void check() const;
};

extern const char *const kTooMuchMemory;

// What `body` returns, made within a budget; a breach is told as such, whatever became of its exception. The process
// has a limit too, which holds where the interpreter makes something that the budget does not count.
template <typename Body>
auto within_template_budget(size_t input, Body body) {
    const Budget budget(input);
    try {
        auto made = body();
        budget.check();
        return made;
    } catch (const std::bad_alloc &) {
        throw std::runtime_error(kTooMuchMemory);
    } catch (const std::exception &) {
        budget.check();
        throw;
    }
}

// Throws for the source of a template that the parser cannot be trusted with: it recurses on brackets and chains.
void check_template_source(const std::string &source);

}  // namespace inferd
