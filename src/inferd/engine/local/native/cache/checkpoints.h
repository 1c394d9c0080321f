// Checkpoints: positions that a sequence can return to in a model that cannot drop a tail.
//
// A recurrent layer keeps the state of the last token only. While a prompt is computed, the engine copies that state
// where later prompts are likely to differ: before the first and the last user message, before the last message, and a
// few tokens before the end. Checkpoints belong to the sequence and move with it, shared and unchanged. So do the
// logits that a prompt ends with, in every model: an equal prompt needs no step for its first token.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace inferd {

// The bytes of all checkpoints and kept logits.
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

// The checkpoints of one sequence, the shortest first.
class Checkpoints {
  public:
    using Each = std::shared_ptr<const Checkpoint>;

    // Tokens between the last checkpoint and the prompt's end: the next prompt may write the head of an answer
    // differently.
    static constexpr size_t kBeforeEnd = 14;
    // A shorter checkpoint is not worth its bytes.
    static constexpr size_t kLeast = 16;

    bool empty() const { return all_.empty(); }

    void add(Each one) {
        cut(one->n - 1);
        all_.push_back(std::move(one));
        // Keep the first: other conversations share that head.
        if (all_.size() > kMost) all_.erase(all_.begin() + 1);
    }

    // Keeps those of at most `n` tokens.
    void cut(size_t n) {
        while (!all_.empty() && all_.back()->n > n) all_.pop_back();
    }

    // The longest of at most `n` tokens, or null.
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
