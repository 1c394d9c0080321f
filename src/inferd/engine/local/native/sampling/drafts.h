// Drafts: the tokens that an answer is expected to go on with.
//
// A step computes a draft in the same batch as the last token of its sequence. The answer's tokens are then sampled
// from the rows of logits in turn, each as if it had a step of its own, for as long as the row before it was that of
// the token which came. So a draft changes how many steps an answer takes and never the choice of a token.
//
// There are two sources: the text that a grammar leaves no choice about, and the tokens that followed when the last
// ones stood in the prompt or the answer before. Every draft is compared with what comes, computed or not; with the
// measured time of larger steps this says how many tokens of the next one are worth computing.
//
// Belongs to one sequence and to the engine's thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "llama.h"
#include "cache/prefix.h"
#include "threads.h"

namespace inferd {

class Drafter {
  public:
    // Tokens of all the drafts of a step.
    static constexpr size_t kMost = 15;

    const Tokens &draft() const { return draft_; }

    // Drafts what may follow `tokens`; `forced` is what a grammar leaves there and goes first.
    void look(const llama_vocab *vocab, const Tokens &tokens, Tokens forced) {
        at_ = 0;
        forced_ = !forced.empty();
        draft_ = std::move(forced);
        if (!forced_) repeat(tokens);
        const auto no_text = [&](llama_token token) { return token < 0 || llama_vocab_is_eog(vocab, token); };
        draft_.erase(std::find_if(draft_.begin(), draft_.end(), no_text), draft_.end());
        if (draft_.size() > kMost) draft_.resize(kMost);
    }

    // How many tokens of the draft, `most` at most, are likely to come. `sequences` share the step: with more of them
    // drafts are shorter.
    size_t promising(int sequences, size_t most) const {
        double chance = 1;
        size_t n = 0;
        while (n < room(sequences, most) && (chance *= chance_of(n)) >= kLikely) n++;
        return n;
    }

    // How many of them are worth their time in a step of `rows` rows without them; no sequence waits for the draft
    // of another.
    size_t worth(const ThreadGovernor &governor, int sequences, int rows, size_t most) const {
        const double plain = governor.usual(sequences);
        if (plain == 0) return 0;
        double chance = 1, tokens = 1, best = (1 + kLeastGain) / plain;
        size_t found = 0;
        for (size_t n = 1; n <= room(sequences, most); n++) {
            chance *= chance_of(n - 1);
            tokens += chance;
            const double cost = governor.usual(rows + static_cast<int>(n));
            if (sequences > 1 && cost > plain * kMostSlower) continue;
            if (tokens / cost > best) {
                best = tokens / cost;
                found = n;
            }
        }
        return found;
    }

    // The answer went on with the last of `tokens`.
    void came(const Tokens &tokens) {
        const llama_token token = tokens.back();
        if (at_ < draft_.size()) {
            const bool right = draft_[at_] == token;
            float &chance = forced_ ? forced_chance_ : repeat_chance_[length_class(matched_)];
            chance += ((right ? 1.0f : 0.0f) - chance) / kMemory;
            at_ = right ? at_ + 1 : draft_.size();
        }
        if (source_ == 0) return;
        if (tokens[source_] == token) {
            source_++;
            matched_++;
        } else {
            source_ = matched_ = 0;
        }
    }

  private:
    static constexpr size_t kLeastMatch = 3;        // fewer equal tokens say nothing
    static constexpr size_t kLongestMatch = 32;     // more make no match more likely to go on
    static constexpr size_t kFarthest = 32 * 1024;  // tokens to look back
    static constexpr float kMemory = 16;            // tokens by which a chance is known
    static constexpr double kLikely = 0.5;
    static constexpr double kLeastGain = 0.2;    // what is known of costs and chances is not exact
    static constexpr double kMostSlower = 1.05;  // what a draft may add to the step of others

    size_t room(int sequences, size_t most) const { return std::min({most, draft_.size(), kMost / sequences}); }

    double chance_of(size_t n) const {
        return forced_ ? forced_chance_ : repeat_chance_[length_class(matched_ + n)];
    }

    // Matches of less than 4, 8, 16 and 32 tokens, and longer ones.
    static size_t length_class(size_t matched) {
        size_t found = 0;
        for (size_t bound = 4; found < 4 && matched >= bound; bound *= 2) found++;
        return found;
    }

    // Drafts what followed the longest end of `tokens` that stood there before.
    void repeat(const Tokens &tokens) {
        if (source_ == 0) find(tokens);
        if (source_ == 0) return;
        for (size_t i = source_; draft_.size() < kMost; i++) {
            // Behind the end the draft itself goes on, as in a text that repeats itself.
            draft_.push_back(i < tokens.size() ? tokens[i] : draft_[i - tokens.size()]);
        }
    }

    void find(const Tokens &tokens) {
        if (tokens.size() <= kLeastMatch) return;
        const size_t last = tokens.size() - 1;
        const size_t first = std::max(kLeastMatch - 1, last > kFarthest ? last - kFarthest : 0);
        for (size_t end = last; end-- > first;) {
            if (tokens[end] != tokens[last] || tokens[end - 1] != tokens[last - 1]) continue;
            size_t n = 2;
            while (n < kLongestMatch && n <= end && tokens[end - n] == tokens[last - n]) n++;
            if (n < kLeastMatch || n <= matched_) continue;
            matched_ = n;
            source_ = end + 1;
            if (n == kLongestMatch) return;
        }
    }

    Tokens draft_;
    bool forced_ = false;
    size_t at_ = 0;       // so many tokens of the draft have come
    size_t source_ = 0;   // where in the tokens the text is that repeats itself; 0: it does not
    size_t matched_ = 0;  // so many tokens before it are equal
    // How often a token of a draft has come, by its source.
    float forced_chance_ = 0.9f;
    std::array<float, 5> repeat_chance_ = {0.4f, 0.5f, 0.7f, 0.8f, 0.9f};
};

}  // namespace inferd
