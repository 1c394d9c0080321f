#include "template_limits.h"

#include <exception>
#include <stdexcept>

#include "cancel.h"
#include "grammar_limits.h"
#include "jinja/bounds.h"

namespace inferd {

const char *const kTooMuchMemory = "the chat template takes too much memory";

namespace {

constexpr int64_t kMaxBytes = INT64_C(128) << 20;  // plus kMaxCopies times the input, because templates copy it
constexpr int64_t kMaxCopies = 16;
constexpr int64_t kMaxBlocks = INT64_C(1) << 20;  // so that no value nests too deeply for its destructor
constexpr int64_t kMaxNanoseconds = INT64_C(5'000'000'000);
// After a breach, code that catches the exception has this time to clean up. It is too short to run the template again.
constexpr int64_t kGraceNanoseconds = INT64_C(200'000'000);
constexpr ptrdiff_t kMaxStack = 1 << 20;
constexpr size_t kMaxSource = 64 << 10;  // the longest of the templates that llama.cpp knows has 17 KiB
constexpr int kMaxBrackets = 200;

struct Usage {
    bool active = false;
    int64_t bytes = 0, blocks = 0, text = 0, max_bytes = 0, deadline = 0;
    const char *stack = nullptr, *breach = nullptr;
    unsigned steps = 0;
};

thread_local Usage usage;

[[noreturn]] void refuse(const char *breach) {
    if (!usage.breach) usage.breach = breach;
    usage.deadline = thread_time() + kGraceNanoseconds;
    throw std::runtime_error(breach);
}

// During stack unwinding, destructors that copy a value must succeed: a second exception would end the process.
bool may_refuse() { return usage.active && std::uncaught_exceptions() == 0; }

}  // namespace

Budget::Budget(size_t input) noexcept {
    usage = Usage();
    usage.max_bytes = kMaxBytes + kMaxCopies * static_cast<int64_t>(input);
    usage.deadline = thread_time() + kMaxNanoseconds;
    const char here = 0;
    usage.stack = &here;
    usage.active = true;
}

Budget::~Budget() { usage.active = false; }

void Budget::check() const {
    if (usage.breach) throw std::runtime_error(usage.breach);
}

void spend_step() {
    if (!may_refuse()) return;
    const char here = 0;
    if (usage.stack - &here > kMaxStack) refuse("the chat template nests too deeply");
    if (++usage.steps % 256 != 0) return;
    if (is_cancelled()) refuse("its client has left");
    if (thread_time() > usage.deadline) refuse("the chat template takes too long");
}

void spend_text(size_t n_bytes) {
    if (!may_refuse()) return;
    if (n_bytes > static_cast<size_t>(usage.max_bytes - usage.text)) refuse(kTooMuchMemory);
    usage.text += static_cast<int64_t>(n_bytes);
}

void Held::grow(size_t n_bytes) {
    if (!usage.active) return;
    if (may_refuse() &&
        (n_bytes > static_cast<size_t>(usage.max_bytes) ||
         usage.bytes + static_cast<int64_t>(n_bytes) > usage.max_bytes || usage.blocks > kMaxBlocks)) {
        refuse(kTooMuchMemory);
    }
    if (n_bytes_ == 0) usage.blocks++;
    n_bytes_ += n_bytes;
    usage.bytes += static_cast<int64_t>(n_bytes);
}

void Held::release() noexcept {
    if (usage.active && n_bytes_ != 0) {
        usage.bytes -= static_cast<int64_t>(n_bytes_);
        usage.blocks--;
    }
    n_bytes_ = 0;
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
