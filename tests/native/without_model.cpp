// The functions of llama.cpp that the exchange calls, for a driver without a model: a clock, and the destruction of
// objects that the driver never makes.
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
