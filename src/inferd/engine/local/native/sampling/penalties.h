// Penalties on recent tokens, by llama.cpp's formula. Only the logits of these few tokens change.
#pragma once

#include <cstddef>
#include <deque>
#include <unordered_map>
#include <vector>

#include "llama.h"

namespace inferd {

class Penalties {
  public:
    Penalties() = default;
    Penalties(float repeat, float presence, float frequency)
        : repeat_(repeat), presence_(presence), frequency_(frequency),
          any_(repeat != 1.0f || presence != 0.0f || frequency != 0.0f) {}

    // Returns the `n` logits with the penalties: `logits` itself if none applies, else a copy that is valid until the
    // next call.
    const float *apply(const float *logits, size_t n) {
        if (counts_.empty()) return logits;
        penalised_.assign(logits, logits + n);
        for (const auto &[token, count] : counts_) {
            float &logit = penalised_[token];
            logit = logit <= 0 ? logit * repeat_ : logit / repeat_;
            logit -= static_cast<float>(count) * frequency_ + presence_;
        }
        return penalised_.data();
    }

    // Records that the answer continues with `token`.
    void accept(llama_token token) {
        if (!any_) return;
        counts_[token]++;
        window_.push_back(token);
        if (window_.size() <= kWindow) return;
        const auto oldest = counts_.find(window_.front());
        if (--oldest->second == 0) counts_.erase(oldest);
        window_.pop_front();
    }

  private:
    static constexpr size_t kWindow = 64;  // how many tokens are recent; the default of other servers

    float repeat_ = 1, presence_ = 0, frequency_ = 0;
    bool any_ = false;
    std::deque<llama_token> window_;
    std::unordered_map<llama_token, int> counts_;
    std::vector<float> penalised_;
};

}  // namespace inferd
