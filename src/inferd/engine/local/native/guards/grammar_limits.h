// Limits for llama.cpp's grammar engine. A grammar comes from a client, but the engine expects trusted grammars: a
// failed assertion ends the process, a parse error prints the grammar to stderr, and an ambiguous grammar can take
// longer than the age of the universe to refuse one token. patches/grammars.patch makes the engine call these functions
// instead.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <stdexcept>
#include <string>

namespace inferd {

inline thread_local std::string grammar_error;     // the reason why the last parse on this thread failed
inline thread_local int64_t grammar_deadline = 0;  // the `thread_time` after which matching gives up
inline thread_local const std::atomic<bool> *grammar_stop = nullptr;  // matching gives up once this is set

class ClientLeft final : public std::runtime_error {
  public:
    ClientLeft() : std::runtime_error("its client has left") {}
};

// Throws if `holds` is false, if this thread's deadline has passed, or if the client has disconnected.
void grammar_step(bool holds);

// Keeps the reason of a parse error for the client.
void keep_grammar_error(const char *reason);

// The processor time of this thread in nanoseconds. Unlike the clock, it does not count other processes' time.
inline int64_t thread_time() {
#ifdef CLOCK_THREAD_CPUTIME_ID
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * INT64_C(1'000'000'000) + now.tv_nsec;
#else
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::nanoseconds(1);
#endif
}

}  // namespace inferd
