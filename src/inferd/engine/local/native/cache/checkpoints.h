// Checkpoints: positions to which a sequence can be rewound, in a model that cannot remove the last tokens of a
// sequence.
//
// A recurrent layer keeps the state of the last token only. While a prompt is computed, the engine copies that state
// where later prompts are likely to differ: before the first and the last user message, before the last message, and a
// few tokens before the end. A sequence owns its checkpoints; its copies share them. A checkpoint never changes.
//
// In every model, a sequence also keeps the logits after its prompt. With them, a later request with the same prompt
// needs no step for its first token.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace inferd {

// The total size of all checkpoints and kept logits, in bytes.
using CheckpointBytes = std::shared_ptr<std::atomic<size_t>>;

// The state after the first `n` tokens of a sequence, or the logits after them.
struct Checkpoint {
    Checkpoint(size_t n_tokens, std::unique_ptr<uint8_t[]> state, size_t n_bytes, CheckpointBytes all)
        : n(n_tokens), data(std::move(state)), size(n_bytes), total(std::move(all)) {
        *total += size;
    }
    ~Checkpoint() { *total -= size; }
    Checkpoint(const Checkpoint &) = delete;
    Checkpoint &operator=(const Checkpoint &) = delete;

    const size_t n;
    const std::unique_ptr<uint8_t[]> data;
    const size_t size;
    const CheckpointBytes total;
};

// The checkpoints of one sequence, in ascending order of their positions.
class Checkpoints {
  public:
    using Each = std::shared_ptr<const Checkpoint>;

    // The last checkpoint is this many tokens before the prompt's end, where the assistant's message begins. The
    // template may begin that message differently in the next prompt.
    static constexpr size_t kBeforeEnd = 14;
    // A checkpoint after fewer tokens is not worth its memory.
    static constexpr size_t kLeast = 16;

    bool empty() const { return all_.empty(); }

    void add(Each one) {
        cut(one->n - 1);
        all_.push_back(std::move(one));
        // The first checkpoint stays, because other conversations begin with the same tokens.
        if (all_.size() > kMost) all_.erase(all_.begin() + 1);
    }

    // Drops the checkpoints after more than `n` tokens.
    void cut(size_t n) {
        while (!all_.empty() && all_.back()->n > n) all_.pop_back();
    }

    // The last checkpoint after at most `n` tokens, or null.
    Each at_most(size_t n) const {
        for (size_t i = all_.size(); i-- > 0;) {
            if (all_[i]->n <= n) return all_[i];
        }
        return nullptr;
    }

  private:
    static constexpr size_t kMost = 5;

    std::vector<Each> all_;
};

}  // namespace inferd
