// What is computed already, what a request needs of it, and how it comes to its slot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/checkpoints.h"
#include "cache/prefix.h"

namespace inferd {

// Why a prompt, or the larger part of it, has to be computed. `model`: it was held for another model or another
// context, before a restart, or for another adapter.
enum class Miss : int { none = 0, first, changed, evicted, other_user, opted_out, model };

// Tokens that were computed for a scope: a user, and behind a NUL what was computed with.
struct Sequence {
    Tokens tokens;
    std::string scope;
    std::string session;
    Checkpoints checkpoints;  // in a model that cannot drop a tail
    uint64_t used = 0;        // the clock of `PrefixCache` at its last use
};

// The state of a sequence as llama.cpp writes it.
struct Snapshot {
    Sequence sequence;
    std::unique_ptr<uint8_t[]> data;
    size_t size = 0;
};

// A state in a file.
struct Stored {
    uint32_t id = 0;
    Sequence sequence;
    size_t size = 0;
};

// A request that is about to get a slot.
struct Wanted {
    const Tokens *prompt;
    size_t n_reusable;  // so many tokens from the start may come from the cache
    size_t n_max;       // room for a prompt, in tokens
    const std::string *scope;
    const std::string *session;
    bool opted_out;
    bool may_fetch = true;  // false: it has already waited for a file
    double token_us = 0;    // what computing a token takes; 0 is not known
};

// A request that runs: the first `n_past` of its tokens are in the cells of `slot`, the others follow.
struct Live {
    int slot;
    const Tokens *tokens;
    size_t n_past;
    const std::string *scope;
    bool shared;  // false: it opted out
    const Checkpoints *checkpoints = nullptr;
    const std::vector<size_t> *marks = nullptr;  // where it will have further ones
};

struct Plan {
    bool wait = false;                  // for `fetch`, or a running request is computing what this one begins with
    uint32_t fetch = 0;                 // the file to bring, or 0
    int slot = -1;                      // the slot to take, never a busy one
    int copy_from = -1;                 // a slot whose cells are to be copied there, or -1
    bool save = false;                  // first save what the slot holds: the request shares only the head of it
    std::shared_ptr<Snapshot> restore;  // a snapshot to be loaded there, or null
    Match keep;                         // what of the source agrees with the prompt
    Checkpoints::Each rewind;           // how the source gets there, if it cannot be cut; null: it can, or need not
    Checkpoints checkpoints;            // of the source, as far as it is kept
    Tokens prompt;           // the prompt with the source's own tokens, where they say the same by other ids
    Miss miss = Miss::none;  // the reason, when less than half of the prompt is found
};

// A conversation that was given a name outlasts those without.
inline bool sooner(const Sequence &a, const Sequence &b) {
    if (a.session.empty() != b.session.empty()) return a.session.empty();
    return a.used < b.used;
}

// The same tokens of the same scope.
inline bool same(const Sequence &a, const Sequence &b) { return a.scope == b.scope && a.tokens == b.tokens; }

// Whether `whole` begins with all of `part`.
inline bool covers(const Sequence &whole, const Sequence &part) {
    return whole.scope == part.scope && whole.tokens.size() >= part.tokens.size() &&
           std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin());
}

// Whether two scopes are of one user.
inline bool same_user(const std::string &a, const std::string &b) {
    const auto user = [](const std::string &scope) { return scope.substr(0, scope.find('\0')); };
    return user(a) == user(b);
}

}  // namespace inferd
