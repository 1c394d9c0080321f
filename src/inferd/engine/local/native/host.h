// What the token loop needs of the machine and of llama.cpp's process-wide state: its log, its devices, the
// number of useful threads, and a thread pool that sleeps when there is no work.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "llama.h"

namespace inferd {

struct Device {
    std::string kind;  // "cpu", "gpu", "igpu", "accel"
    std::string name;  // "CUDA0", "CPU"
    std::string description;
    size_t memory_total = 0;  // bytes
};

std::vector<Device> devices();

// Threads worth using for token generation: performance cores this process may run on.
int useful_threads();

// Has glibc give back what a model or an attachment leaves: no memory for each thread of its own, which would stay with
// the process, and large blocks apart from the small ones, however often such blocks have come and gone.
void settle_malloc();

// Takes over llama.cpp's log: lines are kept (a bounded number) until `drain_log`. Never blocks on Python.
void capture_log();
void keep_log_line(ggml_log_level level, const char *text, void *);
std::vector<std::pair<int, std::string>> drain_log();  // (ggml_log_level, line), oldest first

// A pool of `threads` for `ctx`; freed by `free_pool` after the context.
void *attach_pool(llama_context *ctx, int threads);
void free_pool(void *pool);

// `llama_decode`, with an exception as one more negative code.
constexpr int kDecodeThrew = -100;
int decode(llama_context *ctx, const llama_batch &batch) noexcept;

}  // namespace inferd
