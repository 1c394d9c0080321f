// The machine and llama.cpp's process-wide state: its log, its devices, the number of useful threads, and a thread
// pool that sleeps while idle.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "llama.h"

namespace inferd {

struct Device {
    std::string kind;  // "cpu", "gpu", "igpu", "rpc" (of a worker), "accel"
    std::string name;  // "CUDA0", "CPU"
    std::string description;
    size_t memory_total = 0;  // bytes
};

std::vector<Device> devices();

// The number of threads worth using for token generation: the performance cores on which this process may run.
int useful_threads();

// Makes glibc return the memory of freed models and attachments to the system. It limits the number of arenas, which
// keep freed memory, and maps each block of at least 1 MiB separately.
void settle_malloc();

// Redirects llama.cpp's log to memory, which keeps the latest 1,000 lines until `drain_log`. Does not need the GIL.
void capture_log();
void keep_log_line(ggml_log_level level, const char *text, void *);
std::vector<std::pair<int, std::string>> drain_log();  // (ggml_log_level, line), oldest first

// Makes a pool of `threads` threads for `ctx`. Free the pool with `free_pool`, after the context.
void *attach_pool(llama_context *ctx, int threads);
void free_pool(void *pool);

// Calls `llama_decode`. Returns kDecodeThrew if it throws an exception.
constexpr int kDecodeThrew = -100;
int decode(llama_context *ctx, const llama_batch &batch) noexcept;

}  // namespace inferd
