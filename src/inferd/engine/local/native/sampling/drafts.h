// Speculative decoding: drafts the tokens with which an answer is expected to continue.
//
// A step computes a draft in the same batch as the last token of its sequence. The answer's tokens are then sampled
// from the rows of logits in order, each as in a separate step, up to the first that differs from the draft. So a
// draft changes how many steps an answer takes, but never which token is chosen.
//
// A draft comes from one of three sources: the tokens that the grammar forces, the tokens that followed an earlier
// occurrence of the last tokens in the prompt or the answer, or a draft model (draft_model.h) if it is more often
// right. Every draft, computed or not, is compared with the answer. The resulting acceptance rate and the measured time
// of larger steps decide how many draft tokens are worth computing.
//
// A `Drafter` belongs to one sequence. Only the engine thread uses it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "llama.h"
#include "cache/match.h"
#include "threads.h"

namespace inferd {

class Drafter {
  public:
    // The most draft tokens in a step, over all its sequences.
    static constexpr size_t kMost = 15;
    // A draft must raise the tokens per second by at least this share: times and acceptance rates are known too roughly
    // for a smaller gain.
    static constexpr double kLeastGain = 0.2;

    const Tokens &draft() const { return draft_; }

    // Drafts the continuation of `tokens`. If the grammar forces tokens there, these `forced` tokens are the draft.
    void look(const llama_vocab *vocab, const Tokens &tokens, Tokens forced) {
        from_ = forced.empty() ? Source::repeated : Source::forced;
        draft_ = std::move(forced);
        if (from_ == Source::repeated) repeat(tokens);
        cut(vocab);
    }

    // Whether a draft model is more likely to be right than the draft.
    bool unsure() const { return from_ != Source::forced && (draft_.empty() || chance_of(0) < model_chance_); }

    // Replaces the draft by `of_model`, the draft of a draft model, unless that is empty.
    void take(const llama_vocab *vocab, Tokens of_model) {
        if (of_model.empty()) return;
        from_ = Source::model;
        draft_ = std::move(of_model);
        cut(vocab);
    }

    bool from_model() const { return from_ == Source::model; }

    // How many tokens of the draft are likely to be accepted, at most `most`. The more `sequences` share the step, the
    // shorter is the draft of each.
    size_t promising(int sequences, size_t most) const {
        double chance = 1;
        size_t n = 0;
        while (n < room(sequences, most) && (chance *= chance_of(n)) >= kLikely) n++;
        return n;
    }

    // How many tokens of the draft are worth their time in a step that has `rows` rows without them. A draft may slow
    // down the other sequences only a little (`kMostSlower`).
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

    // Records that the answer continued with the last of `tokens`.
    void came(const Tokens &tokens) {
        const llama_token token = tokens.back();
        if (at_ < draft_.size()) {
            const bool right = draft_[at_] == token;
            float &chance = from_ == Source::forced  ? forced_chance_
                            : from_ == Source::model ? model_chance_
                                                     : repeat_chance_[length_class(matched_)];
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
    enum class Source { forced, repeated, model };

    static constexpr size_t kLeastMatch = 3;        // fewer equal tokens predict nothing
    static constexpr size_t kLongestMatch = 32;     // a longer match makes the continuation no likelier
    static constexpr size_t kFarthest = 32 * 1024;  // how many tokens to look back
    static constexpr float kMemory = 16;            // tokens over which an acceptance rate is averaged
    static constexpr double kLikely = 0.5;
    static constexpr double kMostSlower = 1.05;  // the factor by which a draft may slow a shared step

    size_t room(int sequences, size_t most) const { return std::min({most, draft_.size(), kMost / sequences}); }

    double chance_of(size_t n) const {
        if (from_ == Source::repeated) return repeat_chance_[length_class(matched_ + n)];
        return from_ == Source::forced ? forced_chance_ : model_chance_;
    }

    // Ends the draft before a token that ends the answer or marks media, and limits it to kMost tokens.
    void cut(const llama_vocab *vocab) {
        at_ = 0;
        const auto no_text = [&](llama_token token) { return token < 0 || llama_vocab_is_eog(vocab, token); };
        draft_.erase(std::find_if(draft_.begin(), draft_.end(), no_text), draft_.end());
        if (draft_.size() > kMost) draft_.resize(kMost);
    }

    // The class of a match by its length: less than 4, 8, 16 or 32 tokens, or more.
    static size_t length_class(size_t matched) {
        size_t found = 0;
        for (size_t bound = 4; found < 4 && matched >= bound; bound *= 2) found++;
        return found;
    }

    // Drafts the tokens that followed the earlier occurrence of the longest suffix of `tokens`.
    void repeat(const Tokens &tokens) {
        if (source_ == 0) find(tokens);
        if (source_ == 0) return;
        for (size_t i = source_; draft_.size() < kMost; i++) {
            // Past the end of `tokens` the draft continues with its own tokens: the text is periodic.
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
    Source from_ = Source::repeated;
    size_t at_ = 0;       // how many draft tokens the answer has matched
    size_t source_ = 0;   // index of the token after an earlier occurrence of the last tokens, or 0
    size_t matched_ = 0;  // how many tokens before `source_` equal the last tokens
    // Acceptance rates by source: forced tokens, tokens of a draft model, repeated tokens by the length of the match.
    float forced_chance_ = 0.9f, model_chance_ = 0.8f;
    std::array<float, 5> repeat_chance_ = {0.4f, 0.5f, 0.7f, 0.8f, 0.9f};
};

}  // namespace inferd
