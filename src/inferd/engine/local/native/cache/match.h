// Matches a prompt with the tokens of a sequence in the KV cache.
//
// Two token sequences match as far as their ids are equal. They also match where the ids differ and the text is the
// same: an answer repeated in the next request is tokenised again, rarely into the tokens that were generated. There
// the cached tokens replace the prompt's. Control tokens match by id only, so no text of a client matches one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "llama.h"

namespace inferd {

using Tokens = std::vector<llama_token>;

// Appends a token's text; false for control tokens and media placeholders, which have none.
using PieceOf = std::function<bool(llama_token token, std::string &text)>;

// The texts of a vocabulary, by token; empty for a control token.
inline PieceOf pieces_of(std::vector<std::string> texts) {
    return [texts](llama_token token, std::string &text) {
        if (token < 0 || static_cast<size_t>(token) >= texts.size() || texts[token].empty()) return false;
        text += texts[token];
        return true;
    };
}

// The first `held` tokens of a sequence have the same text as the first `prompt` tokens of a prompt.
struct Match {
    size_t held = 0;
    size_t prompt = 0;
};

// The longest match of the first `n_held` tokens of `held` with the first `n_prompt` of `prompt`. With `text_of` it
// continues past different ids as long as the texts are equal, and ends where a token ends in both.
inline Match match_prefix(const Tokens &held, size_t n_held, const Tokens &prompt, size_t n_prompt,
                          const PieceOf *text_of = nullptr) {
    // Bytes of text without a common token boundary after which the match ends.
    constexpr size_t kMaxUnmatched = 1024;
    size_t a = 0, b = 0;
    const auto equal_ids = [&] {
        while (a < n_held && b < n_prompt && held[a] == prompt[b]) a++, b++;
    };
    equal_ids();
    Match match = {a, b};
    if (!text_of) return match;
    std::string ours, theirs;
    while (true) {
        const bool ours_is_next = ours.size() <= theirs.size();
        const bool more = ours_is_next ? a < n_held && (*text_of)(held[a++], ours)
                                       : b < n_prompt && (*text_of)(prompt[b++], theirs);
        if (!more) return match;
        const size_t common = std::min(ours.size(), theirs.size());
        if (ours.compare(0, common, theirs, 0, common) != 0) return match;
        if (std::max(ours.size(), theirs.size()) > kMaxUnmatched) return match;
        if (ours.empty() || ours.size() != theirs.size()) continue;
        ours.clear();
        theirs.clear();
        equal_ids();
        match = {a, b};
    }
}

}  // namespace inferd
