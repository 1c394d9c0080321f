// What the exchange needs of llama.cpp, for a driver that has no model: a clock, and the ends of objects it never has.
#include <chrono>
#include <cstdint>

#include "sampling/guidance.h"
#include "llama.h"

int64_t llama_time_us() {
    return std::chrono::steady_clock::now().time_since_epoch() / std::chrono::microseconds(1);
}

void llama_sampler_free(llama_sampler *) {}

inferd::Guide::~Guide() = default;

void inferd::GuideStop::stop() noexcept {}
