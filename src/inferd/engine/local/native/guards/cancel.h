// Ends a preparation whose client has disconnected.
//
// A preparation (rendering, tokenising, parsing a grammar) runs in a pool thread and cannot be stopped from outside.
// It polls its thread's flag, and throws when the flag is set.
#pragma once

#include <atomic>
#include <stdexcept>

namespace inferd {

using CancelFlag = std::atomic<bool>;

inline thread_local const CancelFlag *cancel_flag = nullptr;  // null: this thread cannot be cancelled

inline void attach_cancel_flag(const CancelFlag *flag) { cancel_flag = flag; }

inline bool is_cancelled() { return cancel_flag && cancel_flag->load(std::memory_order_relaxed); }

inline void throw_if_cancelled() {
    if (is_cancelled()) throw std::runtime_error("its client has left");
}

}  // namespace inferd
