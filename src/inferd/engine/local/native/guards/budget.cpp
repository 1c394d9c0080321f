#include "budget.h"

#ifdef __APPLE__
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif

#include <cstdlib>
#include <exception>
#include <new>
#include <stdexcept>

#include "cancel.h"
#include "grammar_guard_state.h"

namespace inferd {

namespace {

constexpr int64_t kMaxBytes = INT64_C(128)
                              << 20;  // and for a long input so many times its size: it is copied a lot
constexpr int64_t kMaxCopies = 16;
constexpr int64_t kMaxBlocks = INT64_C(1) << 20;  // so that no value nests too deeply to be taken apart again
constexpr int64_t kMaxNanoseconds = INT64_C(5'000'000'000);
// Whoever has caught a breach may clean up, but not run the template again at leisure.
constexpr int64_t kGraceNanoseconds = INT64_C(200'000'000);
constexpr ptrdiff_t kMaxStack = 1 << 20;
constexpr size_t kMaxSource = 64 << 10;  // the longest of the templates that llama.cpp knows has 17 KiB
constexpr int kMaxBrackets = 200;

struct Usage {
    bool active = false;
    int64_t bytes = 0, blocks = 0, max_bytes = 0, deadline = 0;
    const char *too_much = nullptr, *stack = nullptr, *breach = nullptr;
    unsigned steps = 0;
};

thread_local Usage usage;

struct OverBudget : std::bad_alloc {
    const char *what() const noexcept override { return usage.breach; }
};

[[noreturn]] void refuse(const char *breach) {
    usage.breach = breach;
    throw OverBudget();
}

// While an exception is on its way, destructors that allocate must be let through: a second one would end the process.
bool may_refuse() { return usage.active && std::uncaught_exceptions() == 0; }

bool fits(std::size_t size) {
    return usage.bytes + static_cast<int64_t>(size) <= usage.max_bytes && usage.blocks <= kMaxBlocks;
}

#if defined(__APPLE__)
size_t size_of(void *block) { return malloc_size(block); }
#elif defined(_WIN32)
size_t size_of(void *block) { return _msize(block); }
#else
size_t size_of(void *block) { return malloc_usable_size(block); }
#endif

}  // namespace

Budget::Budget(int64_t max_bytes, const char *too_much) noexcept {
    usage = Usage();
    usage.max_bytes = max_bytes;
    usage.too_much = too_much;
    usage.deadline = thread_time() + kMaxNanoseconds;
    const char here = 0;
    usage.stack = &here;
    usage.active = true;
}

Budget::~Budget() { usage.active = false; }

void Budget::check() const {
    if (usage.breach) throw std::runtime_error(usage.breach);
}

int64_t template_bytes(size_t input) { return kMaxBytes + kMaxCopies * static_cast<int64_t>(input); }

void spend_step() {
    if (!may_refuse()) return;
    const char here = 0;
    if (usage.stack - &here > kMaxStack) refuse("the chat template nests too deeply");
    if (++usage.steps % 256 != 0) return;
    if (is_cancelled()) refuse("its client has left");
    if (thread_time() > usage.deadline) {
        usage.deadline = thread_time() + kGraceNanoseconds;
        refuse("the chat template takes too long");
    }
}

void check_template_source(const std::string &source) {
    if (source.size() > kMaxSource) throw std::runtime_error("it is longer than 64 KiB");
    int depth = 0;
    for (const char c : source) {
        if (c == '(' || c == '[' || c == '{') depth++;
        if ((c == ')' || c == ']' || c == '}') && depth > 0) depth--;
        if (depth > kMaxBrackets) throw std::runtime_error("it nests too deeply");
    }
}

}  // namespace inferd

// For all of this extension and nothing else: its symbols are not exported.

void *operator new(std::size_t size) {
    using namespace inferd;
    if (usage.active && !fits(size) && may_refuse()) refuse(usage.too_much);
    void *block = std::malloc(size ? size : 1);
    if (!block) throw std::bad_alloc();
    if (usage.active) {
        usage.bytes += static_cast<int64_t>(size_of(block));
        usage.blocks++;
    }
    return block;
}

void operator delete(void *block) noexcept {
    using namespace inferd;
    if (usage.active && block) {
        usage.bytes -= static_cast<int64_t>(size_of(block));
        usage.blocks--;
    }
    std::free(block);
}

void operator delete(void *block, std::size_t) noexcept { operator delete(block); }
