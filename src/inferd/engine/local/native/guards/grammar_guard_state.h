// What llama.cpp's grammar engine, compiled with grammar_guard.h, and the sampler tell each other.
#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <string>

namespace inferd {

inline thread_local std::string grammar_message;   // what the last parse on this thread complained about
inline thread_local int64_t grammar_deadline = 0;  // of `thread_time`; matching gives up after it

// Nanoseconds of processor time of this thread, so that a busy machine does not make a grammar look worse.
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
