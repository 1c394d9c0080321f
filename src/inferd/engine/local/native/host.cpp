#include "host.h"

#include <algorithm>
#include <deque>
#include <mutex>
#include <thread>

#include "backends.h"
#include "common.h"
#include "ggml-backend.h"

#ifdef __linux__
#include <sched.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace inferd {

namespace {

const char *kind_of(ggml_backend_dev_t device) {
    if (is_remote(device)) return "rpc";
    switch (ggml_backend_dev_type(device)) {
    case GGML_BACKEND_DEVICE_TYPE_CPU:
        return "cpu";
    case GGML_BACKEND_DEVICE_TYPE_GPU:
        return "gpu";
    case GGML_BACKEND_DEVICE_TYPE_IGPU:
        return "igpu";
    default:
        return "accel";
    }
}

bool has_workers() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++)
        if (is_remote(ggml_backend_dev_get(i))) return true;
    return false;
}

}  // namespace

std::vector<Device> devices() {
    std::vector<Device> found;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        Device one;
        one.kind = kind_of(device);
        one.name = ggml_backend_dev_name(device);
        one.description = ggml_backend_dev_description(device);
        size_t free = 0;
        ggml_backend_dev_memory(device, &free, &one.memory_total);
        found.push_back(std::move(one));
    }
    return found;
}

int useful_threads() {
    int allowed = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) allowed = CPU_COUNT(&set);
#endif
    return std::max(1, std::min(allowed, static_cast<int>(common_cpu_get_num_math())));
}

namespace {

constexpr size_t kMaxLines = 1000;  // a broken model can log endlessly
std::mutex log_mutex;
std::deque<std::pair<int, std::string>> log_lines;

}  // namespace

void keep_log_line(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_DEBUG) return;
    std::lock_guard<std::mutex> lock(log_mutex);
    if (level == GGML_LOG_LEVEL_CONT && !log_lines.empty()) {
        log_lines.back().second += text;
        return;
    }
    if (log_lines.size() == kMaxLines) log_lines.pop_front();
    log_lines.emplace_back(level, text);
}

void settle_malloc() {
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 1 << 20);
#endif
}

void capture_log() { llama_log_set(keep_log_line, nullptr); }

std::vector<std::pair<int, std::string>> drain_log() {
    std::lock_guard<std::mutex> lock(log_mutex);
    std::vector<std::pair<int, std::string>> lines(log_lines.begin(), log_lines.end());
    log_lines.clear();
    return lines;
}

void *attach_pool(llama_context *ctx, int threads) {
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    // After a step, the threads spin for about a millisecond and then sleep. By ggml's default they would spin fifty
    // times longer, which keeps cores busy on an idle machine. With RPC workers they sleep at once: a worker on the
    // same machine needs the cores between two steps.
    params.poll = has_workers() ? 0 : 1;
    const auto make =
        reinterpret_cast<ggml_threadpool *(*)(ggml_threadpool_params *)>(cpu_function("ggml_threadpool_new"));
    ggml_threadpool *pool = make(&params);
    if (pool) llama_attach_threadpool(ctx, pool, pool);
    return pool;
}

void free_pool(void *pool) {
    const auto end = reinterpret_cast<void (*)(ggml_threadpool *)>(cpu_function("ggml_threadpool_free"));
    if (pool) end(static_cast<ggml_threadpool *>(pool));
}

int decode(llama_context *ctx, const llama_batch &batch) noexcept {
    try {
        return llama_decode(ctx, batch);
    } catch (...) {
        return kDecodeThrew;
    }
}

}  // namespace inferd
