// Remembers evicted prefixes, to report why a request does not find its prefix in the cache.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "cache/types.h"

namespace inferd {

class Misses {
  public:
    void remember(const Sequence &sequence, Miss why) {
        if (sequence.tokens.size() < kStep) return;
        ghosts_.push_front({sequence.scope, heads_of(sequence.tokens), why});
        if (ghosts_.size() > kMost) ghosts_.pop_back();
    }

    // Returns why the cache lacks the first `enough` tokens of `prompt`: the reason for which a sequence that begins
    // with about as many of them was evicted, or `none` if no such sequence is remembered.
    Miss reason(const Tokens &prompt, const std::string &scope, size_t enough) const {
        const std::vector<uint64_t> heads = heads_of(prompt);
        for (const auto &ghost : ghosts_) {
            size_t n = 0;
            while (n < heads.size() && n < ghost.heads.size() && heads[n] == ghost.heads[n]) n++;
            if (ghost.scope == scope && n * kStep + kStep > enough && n > 0) return ghost.why;
        }
        return Miss::none;
    }

  private:
    // An evicted sequence. For every kStep tokens it keeps a hash of 8 bytes, and none of the client's tokens.
    struct Ghost {
        std::string scope;
        std::vector<uint64_t> heads;
        Miss why;
    };

    static constexpr size_t kStep = 32;
    static constexpr size_t kMost = 256;

    static std::vector<uint64_t> heads_of(const Tokens &tokens) {
        std::vector<uint64_t> heads;
        uint64_t hash = 1469598103934665603u;  // FNV-1a
        for (size_t i = 0; i < tokens.size(); i++) {
            hash = (hash ^ static_cast<uint32_t>(tokens[i])) * 1099511628211u;
            if ((i + 1) % kStep == 0) heads.push_back(hash);
        }
        return heads;
    }

    std::deque<Ghost> ghosts_;
};

}  // namespace inferd
