// Checkpoints: where a sequence can be taken back to in a model that cannot drop a tail.
//
// The state of a recurrent layer is of the last token alone. While a prompt is computed, copies of it are kept at the
// places where later prompts are likely to differ: before the first and the last user message, before the last message,
// and a few tokens before the end. They belong to the sequence and go with it from place to place, shared and unchanged.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace inferd {

// The bytes of all checkpoints that there are.
using CheckpointBytes = std::shared_ptr<std::atomic<size_t>>;

struct Checkpoint {
    Checkpoint(size_t n_tokens, std::unique_ptr<uint8_t[]> state, size_t n_bytes, CheckpointBytes all)
        : n(n_tokens), data(std::move(state)), size(n_bytes), total(std::move(all)) {
        *total += size;
    }
    ~Checkpoint() { *total -= size; }
    Checkpoint(const Checkpoint &) = delete;
    Checkpoint &operator=(const Checkpoint &) = delete;

    const size_t n;  // of so many tokens
    const std::unique_ptr<uint8_t[]> data;
    const size_t size;
    const CheckpointBytes total;
};

// Those of one sequence, the shortest first.
class Checkpoints {
  public:
    using Each = std::shared_ptr<const Checkpoint>;

    // So many tokens before a prompt's end is the last one: what opens an answer may be written in another way in the
    // next prompt.
    static constexpr size_t kBeforeEnd = 14;
    // One of fewer tokens is not worth its bytes.
    static constexpr size_t kLeast = 16;

    bool empty() const { return all_.empty(); }

    void add(Each one) {
        cut(one->n - 1);
        all_.push_back(std::move(one));
        // The first is that of the head which other conversations share.
        if (all_.size() > kMost) all_.erase(all_.begin() + 1);
    }

    // Those of at most `n` tokens remain.
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
