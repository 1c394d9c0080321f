#include "grammar_limits.h"

#include <stdexcept>

#include "cancel.h"

namespace inferd {

void grammar_step(bool holds) {
    if (!holds) throw std::runtime_error("the grammar engine met a state it does not handle");
    static thread_local unsigned steps = 0;
    if (++steps % 256 != 0) return;
    if (is_cancelled() || (grammar_stop && grammar_stop->load(std::memory_order_relaxed))) throw ClientLeft();
    if (thread_time() > grammar_deadline) throw std::runtime_error("the grammar is too ambiguous");
}

void keep_grammar_error(const char *reason) {
    grammar_error = std::string(reason).substr(0, 80);  // it may quote the rest of the grammar
}

}  // namespace inferd
