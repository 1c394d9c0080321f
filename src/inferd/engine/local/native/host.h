// The machine and llama.cpp's process-wide state: its log, its devices, the number of useful threads, and a thread
// pool that sleeps while idle.
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

// Makes glibc return the memory of freed models and attachments: it limits the arenas, whose memory would stay with the
// process, and always keeps large blocks apart from small ones.
void settle_malloc();

// Redirects llama.cpp's log: keeps a bounded number of lines until `drain_log`. Never blocks on Python.
void capture_log();
void keep_log_line(ggml_log_level level, const char *text, void *);
std::vector<std::pair<int, std::string>> drain_log();  // (ggml_log_level, line), oldest first

// A pool of `threads` for `ctx`; freed by `free_pool` after the context.
void *attach_pool(llama_context *ctx, int threads);
void free_pool(void *pool);

// `llama_decode`; returns kDecodeThrew for an exception.
constexpr int kDecodeThrew = -100;
int decode(llama_context *ctx, const llama_batch &batch) noexcept;

}  // namespace inferd
