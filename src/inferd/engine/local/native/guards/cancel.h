// Ends a preparation whose client has left.
//
// A preparation (rendering, tokenising, parsing of a grammar) runs in a thread of its own and cannot be stopped
// from outside. It looks at its thread's flag now and then, and throws when it is set.
#pragma once

#include <atomic>
#include <stdexcept>

namespace inferd {

using CancelFlag = std::atomic<bool>;

inline thread_local const CancelFlag *cancel_flag = nullptr;  // null: nothing here can be cancelled

inline void attach_cancel_flag(const CancelFlag *flag) { cancel_flag = flag; }

inline bool is_cancelled() { return cancel_flag && cancel_flag->load(std::memory_order_relaxed); }

inline void throw_if_cancelled() {
    if (is_cancelled()) throw std::runtime_error("its client has left");
}

}  // namespace inferd
