// Matches a prompt with the tokens of a sequence in the KV cache.
//
// Two token sequences match as far as their ids are equal. They also match where the ids differ but the text is equal:
// the next request contains the answer as text, and the tokenizer may split that text into other tokens than the model
// generated. There the cached tokens replace the prompt's tokens. A control token matches only by its id, so text of a
// client never matches one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "llama.h"

namespace inferd {

using Tokens = std::vector<llama_token>;

// Appends a token's text. Returns false for control tokens and media placeholders, which have no text.
using PieceOf = std::function<bool(llama_token token, std::string &text)>;

// Makes a `PieceOf` from the text of each token of a vocabulary. The text of a control token is empty.
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

// The longest match of the first `n_held` tokens of `held` with the first `n_prompt` of `prompt`. With `text_of`, the
// match continues past different ids while the texts are equal, and ends at a position where a token ends in both.
inline Match match_prefix(const Tokens &held, size_t n_held, const Tokens &prompt, size_t n_prompt,
                          const PieceOf *text_of = nullptr) {
    // The match ends before a stretch of more than this many bytes of text in which no token ends in both.
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
