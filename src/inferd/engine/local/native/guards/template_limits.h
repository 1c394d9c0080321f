// The resource limits of a chat template.
//
// A template is a program from a model file, and llama.cpp's interpreter runs it without limits: a loop over a large
// range or a string multiplied by a large number would take all memory, and a recursive macro would end the process.
// While a `Budget` lives, its thread has limited memory, processor time and stack. Exceeding them throws from the
// functions of jinja/bounds.h, which the interpreter calls (patches/templates.patch).
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <string>

namespace inferd {

class Budget {
  public:
    // The budget of a template with `input` bytes of data. A thread may have one budget at a time.
    explicit Budget(size_t input) noexcept;
    ~Budget();
    Budget(const Budget &) = delete;
    Budget &operator=(const Budget &) = delete;

    // Throws if the budget was exceeded, even if the interpreter caught the first exception.
    void check() const;
};

extern const char *const kTooMuchMemory;

// Runs `body` within a budget. If the budget was exceeded, throws the budget's error, whatever `body` did with the
// first exception. If the process runs out of memory, throws kTooMuchMemory.
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

// Throws for a source that is too long or too deeply nested for the parser, which recurses for brackets and for chains
// of operators.
void check_template_source(const std::string &source);

}  // namespace inferd
