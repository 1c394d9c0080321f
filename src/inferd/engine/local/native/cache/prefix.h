// How much of a prompt a sequence in the KV cache already holds.
//
// Two token sequences agree as far as their ids are equal. They also agree where the ids differ and the text is
// the same: an answer that comes back in the next request is tokenised anew, and its tokens are rarely the ones
// that were generated. There the held tokens take the place of the prompt's. Control tokens agree by their ids
// alone, so no text of a client can pass for one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "llama.h"

namespace inferd {

using Tokens = std::vector<llama_token>;

// Appends a token's text; false for a control token and for the place of media, which have none.
using PieceOf = std::function<bool(llama_token token, std::string &text)>;

// The texts of a vocabulary, by token; an empty one is a control token's.
inline PieceOf pieces_of(std::vector<std::string> texts) {
    return [texts](llama_token token, std::string &text) {
        if (token < 0 || static_cast<size_t>(token) >= texts.size() || texts[token].empty()) return false;
        text += texts[token];
        return true;
    };
}

// The first `held` tokens of a sequence say the same as the first `prompt` tokens of a prompt.
struct Match {
    size_t held = 0;
    size_t prompt = 0;
};

// The longest match of the first `n_held` tokens of `held` with the first `n_prompt` of `prompt`. With `text_of`
// it goes on behind a difference of ids as long as the texts are equal, and ends where a token ends in both.
inline Match match_prefix(const Tokens &held, size_t n_held, const Tokens &prompt, size_t n_prompt,
                          const PieceOf *text_of = nullptr) {
    // Text that belongs to one side alone; beyond it no token ends in both places.
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
