// Saves, loads, copies and shortens the state of a sequence.
//
// llama.cpp reports a failure as a size of 0. A failed load empties the slot. Nothing here throws.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "llama.h"
#include "cache/prefix_cache.h"

namespace inferd {

// Makes a function that gives `match_prefix` the text of a token.
inline PieceOf piece_of(const llama_vocab *vocab) {
    return [vocab](llama_token token, std::string &text) {
        if (token < 0) return false;  // media
        if (llama_vocab_is_control(vocab, token) || llama_vocab_is_eog(vocab, token)) return false;
        char small[256];
        const int n = llama_token_to_piece(vocab, token, small, sizeof small, 0, true);
        if (n > 0) text.append(small, n);
        return n > 0;
    };
}

using State = std::pair<std::unique_ptr<uint8_t[]>, size_t>;

// The state of `slot`, `size` bytes long; {null, 0} on failure.
inline State read_state(llama_context *ctx, int slot, size_t size) {
    State state{std::unique_ptr<uint8_t[]>(new (std::nothrow) uint8_t[size]), size};
    if (!state.first || llama_state_seq_get_data_ext(ctx, state.first.get(), size, slot, 0) != size)
        return {nullptr, 0};
    return state;
}

inline bool write_state(llama_context *ctx, int slot, const uint8_t *data, size_t size) {
    if (llama_state_seq_set_data_ext(ctx, data, size, slot, 0) == size) return true;
    llama_memory_seq_rm(llama_get_memory(ctx), slot, -1, -1);
    return false;
}

// Saves `sequence`, which `slot` holds, as a snapshot in `cache`. False if there is no room or recomputing is cheaper.
// Computing a token takes `token_us` (0: not known).
inline bool save(llama_context *ctx, int slot, const Sequence &sequence, PrefixCache &cache,
                 double token_us) noexcept {
    try {
        const int64_t started = llama_time_us();
        const size_t size = llama_state_seq_get_size_ext(ctx, slot, 0);
        if (size == 0 || !cache.pays(size, sequence.tokens.size(), token_us) || !cache.reserve(size)) return false;
        State state = read_state(ctx, slot, size);
        if (!state.first) return false;
        cache.copied(size, llama_time_us() - started);
        cache.add(sequence, std::move(state.first), size);
        return true;
    } catch (...) {
        return false;  // out of memory
    }
}

// Loads a snapshot into `slot`.
inline bool load(llama_context *ctx, int slot, const std::shared_ptr<Snapshot> &snapshot,
                 PrefixCache &cache) noexcept {
    const int64_t started = llama_time_us();
    if (!write_state(ctx, slot, snapshot->data.get(), snapshot->size)) {
        cache.discard(snapshot);
        return false;
    }
    cache.copied(snapshot->size, llama_time_us() - started);
    return true;
}

// Copies the cells of `src` to `dst`, which may be in different buffers. If `sequence` is not null and there is room,
// the copy also becomes a snapshot of `sequence`, because further requests may begin with the same prefix.
inline bool copy(llama_context *ctx, int src, int dst, const Sequence *sequence, PrefixCache &cache) noexcept {
    try {
        State state = read_state(ctx, src, llama_state_seq_get_size_ext(ctx, src, 0));
        if (!state.first || !write_state(ctx, dst, state.first.get(), state.second)) return false;
        if (sequence && cache.reserve(state.second)) cache.add(*sequence, std::move(state.first), state.second);
        return true;
    } catch (...) {
        return false;
    }
}

// Shortens `slot` to its first `n` tokens. Empties the slot and returns false if that is impossible: if the model is
// recurrent, or its sliding window of `n_swa` tokens has dropped cells that the shorter sequence needs.
inline bool cut(llama_context *ctx, int slot, size_t n, int n_swa) noexcept {
    llama_memory_t memory = llama_get_memory(ctx);
    const auto end = static_cast<llama_pos>(n);
    const llama_pos held = llama_memory_seq_pos_max(memory, slot) + 1;
    bool ok = held == end || (held > end && llama_memory_seq_rm(memory, slot, end, -1));
    if (ok && n_swa > 0 && n > 0) ok = llama_memory_seq_pos_min(memory, slot) <= std::max(0, end - n_swa);
    if (!ok) llama_memory_seq_rm(memory, slot, -1, -1);
    return ok;
}

// Keeps a checkpoint of `slot`, which holds `n` tokens, if there is room and recomputing costs more.
inline void keep_checkpoint(llama_context *ctx, int slot, size_t n, Checkpoints &checkpoints, PrefixCache &cache,
                            double token_us) noexcept {
    try {
        const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
        const size_t size = llama_state_seq_get_size_ext(ctx, slot, flags);
        if (size == 0 || !cache.pays(size, n, token_us) || !cache.reserve(size)) return;
        std::unique_ptr<uint8_t[]> data(new (std::nothrow) uint8_t[size]);
        if (!data || llama_state_seq_get_data_ext(ctx, data.get(), size, slot, flags) != size) return;
        checkpoints.add(std::make_shared<Checkpoint>(n, std::move(data), size, cache.checkpoint_bytes()));
    } catch (...) {
        // Out of memory: no checkpoint.
    }
}

// A copy of the `n_vocab` logits that follow `n` tokens; null if there is no room.
inline Checkpoints::Each keep_logits(const float *logits, int n_vocab, size_t n, PrefixCache &cache) noexcept {
    try {
        const size_t size = sizeof(float) * n_vocab;
        if (!cache.reserve(size)) return nullptr;
        std::unique_ptr<uint8_t[]> data(new uint8_t[size]);
        std::memcpy(data.get(), logits, size);
        return std::make_shared<Checkpoint>(n, std::move(data), size, cache.checkpoint_bytes());
    } catch (...) {
        return nullptr;  // out of memory
    }
}

inline const float *floats_of(const Checkpoint &logits) {
    return reinterpret_cast<const float *>(logits.data.get());
}

// Rewinds `slot` to a checkpoint of its sequence. If that fails, empties the slot and returns false.
inline bool rewind(llama_context *ctx, int slot, const Checkpoint &to) noexcept {
    llama_memory_t memory = llama_get_memory(ctx);
    const auto end = static_cast<llama_pos>(to.n);
    const auto flags = LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY;
    const bool ok = llama_state_seq_set_data_ext(ctx, to.data.get(), to.size, slot, flags) == to.size &&
                    llama_memory_seq_rm(memory, slot, end, -1) && llama_memory_seq_pos_max(memory, slot) + 1 == end;
    if (!ok) llama_memory_seq_rm(memory, slot, -1, -1);
    return ok;
}

}  // namespace inferd
