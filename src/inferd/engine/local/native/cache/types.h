// The types of the prefix cache: cached sequences, a request that looks for a prefix, and the plan for its slot.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache/checkpoints.h"
#include "cache/match.h"

namespace inferd {

// Why more than half of a prompt must be computed. `model`: it was computed before, but for another model, context or
// adapter.
enum class Miss : int { none = 0, first, changed, evicted, other_user, opted_out, model };

// Tokens that were computed for a scope. A scope is the name of the user; with an adapter, a NUL and the key of the
// adapter follow.
struct Sequence {
    Tokens tokens;
    std::string scope;
    std::string session;
    Checkpoints checkpoints;   // empty if the model can shorten a sequence to any length
    Checkpoints::Each logits;  // the logits after its prompt, or null
    uint64_t used = 0;         // the clock of `PrefixCache` at its last use
};

// A copy of a sequence without its checkpoints and logits, so that it does not keep their memory.
inline Sequence named(const Sequence &sequence) {
    return {sequence.tokens, sequence.scope, sequence.session, {}, nullptr, sequence.used};
}

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
    size_t n_reusable;  // how many of its first tokens may come from the cache if the logits do not
    size_t n_max;       // the longest prompt, in tokens
    const std::string *scope;
    const std::string *session;
    bool opted_out;
    bool may_fetch = true;  // false: it has already waited for a file
    double token_us = 0;    // the time to compute a token; 0 = not known
};

// A running request. The first `n_past` of its tokens are in the cells of `slot`; the others are not computed yet.
struct Live {
    int slot;
    const Tokens *tokens;
    size_t n_past;
    const std::string *scope;
    bool shared;  // whether another request may use its tokens: not if it opted out or has media
    const Checkpoints *checkpoints = nullptr;
    const std::vector<size_t> *marks = nullptr;  // positions of its planned checkpoints
    const Checkpoints::Each *logits = nullptr;
};

struct Plan {
    bool wait = false;   // wait for the file `fetch`, or for a running request that computes the prefix
    uint32_t fetch = 0;  // the file to load, or 0
    int slot = -1;       // the slot to take, never a busy one
    int copy_from = -1;  // the slot whose cells to copy there, or -1
    bool save = false;   // save the slot's sequence first, because tokens of it will be replaced
    std::shared_ptr<Snapshot> restore;  // the snapshot to load there, or null
    Match keep;                         // the part of the source that matches the prompt
    Checkpoints::Each rewind;  // the checkpoint to rewind to, or null if the source can be cut or is kept whole
    Checkpoints checkpoints;   // the checkpoints in the kept part of the source
    Checkpoints::Each logits;  // the logits after the prompt, if the source has them
    Tokens prompt;           // the prompt with the source's tokens, where their ids differ and the text is the same
    Miss miss = Miss::none;  // the reason, when less than half of the prompt is found
};

// The eviction order: sequences without a session name first, then by last use.
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
