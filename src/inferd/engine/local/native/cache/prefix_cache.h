// The prefix cache: indexes the sequences of earlier requests, and plans at which token the prefill of the next request
// begins.
//
// A finished request leaves its KV cells in its slot, which is then idle. Before a slot is reused, its sequence can be
// saved as a snapshot in memory. `plan` finds the longest prefix of a prompt among idle slots, snapshots and running
// requests, and returns the steps to take. The caller moves the cells and reports what it did. The cache also knows the
// tokens whose states are in files: `plan` asks for a file if it has a longer prefix than every other place.
//
// This file has over 400 lines, because every choice here weighs the same slots, snapshots and files against each
// other.
//
// Requests never share sequences across scopes. Only the engine thread uses the cache, except `bytes` and `tokens`.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

#include "cache/misses.h"
#include "cache/types.h"

namespace inferd {

class PrefixCache {
  public:
    // A match of fewer tokens does not influence which slot the request gets.
    static constexpr size_t kLeastShared = 16;
    // A request that replaces fewer of the last tokens of a sequence continues its conversation. A request that
    // replaces more of them begins another conversation with the same first tokens.
    static constexpr size_t kLeastSaved = 32;
    // Only a whole slot can be copied. Copying a token takes less than a thirtieth of the time of computing it, so a
    // copy pays if the slot has at most this many times the tokens that the request reuses.
    static constexpr size_t kMostCopied = 32;
    // A sequence of fewer tokens is not worth a file.
    static constexpr size_t kLeastFiled = 64;
    // The most remembered sequences that cannot be saved in a file.
    static constexpr size_t kMostUnfiled = 256;

    // `budget`: the most bytes of all snapshots and checkpoints together. `any_cut`: the model can shorten a sequence
    // to any length; otherwise only to one of its checkpoints.
    PrefixCache(int slots, size_t budget, bool any_cut, PieceOf text_of)
        : slots_(slots), budget_(budget), any_cut_(any_cut), text_of_(std::move(text_of)) {}

    size_t budget() const { return budget_; }
    size_t bytes() const { return bytes_ + *checkpoint_bytes_; }
    const CheckpointBytes &checkpoint_bytes() const { return checkpoint_bytes_; }
    // The number of tokens in idle slots and snapshots.
    size_t tokens() const { return tokens_; }
    bool busy(int slot) const { return slots_[slot].busy; }
    bool any_cut() const { return any_cut_; }

    // Sets the callback for evicted snapshots that are in no file.
    void on_evict(std::function<void(std::shared_ptr<Snapshot>)> call) { on_evict_ = std::move(call); }
    const Sequence &held(int slot) const { return slots_[slot].sequence; }

    // Plans at which token the prefill of a prompt begins, and in which slot. A slot must be idle, unless the plan is
    // to wait.
    Plan plan(const Wanted &wanted, const std::vector<Live> &live) {
        clock_++;
        Plan plan;
        if (wanted.opted_out) {
            plan.slot = victim();
            plan.save = worth_saving(plan.slot, 0);
            plan.miss = Miss::opted_out;
            return plan;
        }
        Source best = find(wanted, live);
        if (const size_t coming = being_computed(wanted, live); coming >= best.keep.prompt + kLeastSaved) {
            plan.wait = true;
            return plan;
        }
        if (const Stored *file = wanted.may_fetch ? better_file(best.keep.prompt, wanted) : nullptr) {
            plan.wait = true;
            plan.fetch = file->id;
            return plan;
        }
        place(best, wanted, plan);
        if (plan.keep.prompt * 2 < wanted.n_reusable) plan.miss = reason(wanted, best);
        return plan;
    }

    // Gives the slot to a request. The cache forgets the slot's sequence.
    void take(int slot) {
        if (!saved(slots_[slot].sequence)) misses_.remember(slots_[slot].sequence, Miss::evicted);
        slots_[slot].busy = true;
        slots_[slot].sequence = {};
        count();
    }

    // Makes the slot idle. Its cells hold `sequence`, which may be empty.
    void leave(int slot, Sequence sequence) {
        sequence.used = clock_;
        slots_[slot].busy = false;
        slots_[slot].sequence = std::move(sequence);
        count();
    }

    // The idle slot to evict first, or -1 if all idle slots are empty.
    int oldest() const {
        int found = -1;
        for (int i = 0; i < static_cast<int>(slots_.size()); i++) {
            if (slots_[i].busy || slots_[i].sequence.tokens.empty()) continue;
            if (found < 0 || sooner(slots_[i].sequence, slots_[found].sequence)) found = i;
        }
        return found;
    }

    // Records that an idle slot was emptied to make room.
    void evict(int slot) {
        misses_.remember(slots_[slot].sequence, Miss::evicted);
        slots_[slot].sequence = {};
        count();
    }

    // Forgets the sequences of all slots, after the context was lost.
    void lose_slots() {
        for (auto &slot : slots_) slot.sequence = {};
        count();
    }

    // Makes room for a snapshot or checkpoint of `size` bytes. Returns false if that is impossible.
    bool reserve(size_t size) {
        if (size > budget_) return false;
        while (bytes() + size > budget_) {
            if (snapshots_.empty()) {
                if (!drop_checkpoints()) return false;
                continue;
            }
            size_t oldest = 0;
            for (size_t i = 1; i < snapshots_.size(); i++) {
                if (sooner(snapshots_[i]->sequence, snapshots_[oldest]->sequence)) oldest = i;
            }
            if (on_evict_ && !filed(snapshots_[oldest]->sequence)) on_evict_(snapshots_[oldest]);
            misses_.remember(snapshots_[oldest]->sequence, Miss::evicted);
            drop(oldest);
        }
        return true;
    }

    // Adds a snapshot, for which `reserve` has made room. If the model can shorten a sequence to any length, the
    // snapshot replaces the snapshots of its prefixes.
    void add(Sequence sequence, std::unique_ptr<uint8_t[]> data, size_t size) {
        for (size_t i = snapshots_.size(); i-- > 0;) {
            if (any_cut_ && covers(sequence, snapshots_[i]->sequence)) drop(i);
        }
        sequence.used = clock_;
        bytes_ += size;
        snapshots_.push_back(std::shared_ptr<Snapshot>(new Snapshot{std::move(sequence), std::move(data), size}));
        count();
    }

    // Whether a snapshot holds all of `sequence`.
    bool saved(const Sequence &sequence) const {
        for (const auto &snapshot : snapshots_) {
            const bool all = snapshot->sequence.tokens.size() == sequence.tokens.size() || any_cut_;
            if (all && covers(snapshot->sequence, sequence)) return true;
        }
        return false;
    }

    // Files.

    void add_file(Stored file) { files_.push_back(std::move(file)); }

    void drop_file(uint32_t id) {
        const auto gone = [id](const Stored &file) { return file.id == id; };
        files_.erase(std::remove_if(files_.begin(), files_.end(), gone), files_.end());
    }

    const Stored *file(uint32_t id) const {
        for (const auto &file : files_) {
            if (file.id == id) return &file;
        }
        return nullptr;
    }

    // The files that are useless once a file has the state of `sequence`.
    std::vector<uint32_t> replaced_by(const Sequence &sequence) const {
        std::vector<uint32_t> ids;
        for (const auto &file : files_) {
            if (any_cut_ ? covers(sequence, file.sequence) : same(sequence, file.sequence)) ids.push_back(file.id);
        }
        return ids;
    }

    // Records that `sequence` cannot be saved in a file.
    void no_file(Sequence sequence) {
        no_files_.push_front(std::move(sequence));
        if (no_files_.size() > kMostUnfiled) no_files_.pop_back();
    }

    // Whether a file holds all of `sequence`. Also true for a sequence that is too short for a file or cannot be saved.
    bool filed(const Sequence &sequence) const {
        if (sequence.tokens.size() < kLeastFiled) return true;
        for (const auto &each : no_files_) {
            if (same(each, sequence)) return true;
        }
        for (const auto &file : files_) {
            if (any_cut_ ? covers(file.sequence, sequence) : same(file.sequence, sequence)) return true;
        }
        return false;
    }

    // The most recently used idle slot whose sequence is in no file and no snapshot, or -1.
    int unfiled_slot() const {
        int found = -1;
        for (int i = 0; i < static_cast<int>(slots_.size()); i++) {
            const Sequence &held = slots_[i].sequence;
            if (slots_[i].busy || filed(held) || saved(held)) continue;
            if (found < 0 || held.used > slots_[found].sequence.used) found = i;
        }
        return found;
    }

    // The most recently used snapshot that is in no file, or null.
    std::shared_ptr<Snapshot> unfiled_snapshot() const {
        std::shared_ptr<Snapshot> found;
        for (const auto &snapshot : snapshots_) {
            if (filed(snapshot->sequence)) continue;
            if (!found || snapshot->sequence.used > found->sequence.used) found = snapshot;
        }
        return found;
    }

    // Records that the state of `sequence` cannot be loaded: it was computed for another model, build or context.
    void outdated(const Sequence &sequence) { misses_.remember(sequence, Miss::model); }

    // Records that loading a file of `size` bytes took `us` microseconds.
    void fetched(size_t size, int64_t us) {
        const double pace = static_cast<double>(us) / std::max<size_t>(size, 1);
        us_per_file_byte_ = us_per_file_byte_ == 0 ? pace : us_per_file_byte_ + (pace - us_per_file_byte_) / 4;
    }

    // Drops a snapshot that could not be loaded.
    void discard(const std::shared_ptr<Snapshot> &snapshot) {
        for (size_t i = 0; i < snapshots_.size(); i++) {
            if (snapshots_[i] == snapshot) return drop(i);
        }
    }

    // Records that copying `size` bytes took `us` microseconds.
    void copied(size_t size, int64_t us) {
        const double pace = static_cast<double>(us) / size;
        us_per_byte_ = us_per_byte_ == 0 ? pace : us_per_byte_ + (pace - us_per_byte_) / 4;
    }

    // Whether copying `size` bytes out and back is cheaper than computing `tokens` at `us_per_token` (0: not known).
    bool pays(size_t size, size_t tokens, double us_per_token) const {
        return us_per_token == 0 || 2 * us_per_byte_ * size < us_per_token * tokens;
    }

  private:
    struct Slot {
        Sequence sequence;
        bool busy = false;
    };

    struct Source {
        Match keep;
        Checkpoints::Each rewind, logits;
        const Tokens *tokens = nullptr;
        const Checkpoints *checkpoints = nullptr;
        int slot = -1;
        bool live = false;
        std::shared_ptr<Snapshot> snapshot;
        uint64_t used = 0;
    };

    // A match with a prompt, the checkpoint at the end of the match if the model needs one, and the logits after the
    // prompt if all of the prompt matches.
    struct Found {
        Match keep;
        Checkpoints::Each rewind, logits;
    };

    Found match(const Tokens &held, size_t n_held, const std::string &scope, const Checkpoints *checkpoints,
                const Checkpoints::Each *logits, const Wanted &wanted) const {
        if (scope != *wanted.scope) return {};
        if (logits && *logits && (any_cut_ ? (*logits)->n <= n_held : (*logits)->n == n_held)) {
            const size_t n = wanted.prompt->size();
            const Match whole = match(held, (*logits)->n, n, wanted);
            if (whole.held == (*logits)->n && whole.prompt == n) return {whole, nullptr, *logits};
        }
        const Match all = match(held, n_held, wanted.n_reusable, wanted);
        if (any_cut_ || all.held == n_held) return {all, nullptr, nullptr};
        Checkpoints::Each back = checkpoints ? checkpoints->at_most(all.held) : nullptr;
        while (back) {
            const Match keep = match(held, back->n, wanted.n_reusable, wanted);
            if (keep.held == back->n) return {keep, back, nullptr};
            back = checkpoints->at_most(back->n - 1);  // no token of the prompt ends at this checkpoint
        }
        return {};
    }

    // The match with the first `n` tokens of the prompt. If the cached tokens would make the prompt too long, only
    // equal ids match.
    Match match(const Tokens &held, size_t n_held, size_t n, const Wanted &wanted) const {
        const Tokens &prompt = *wanted.prompt;
        const Match match = match_prefix(held, n_held, prompt, n, &text_of_);
        if (match.held + prompt.size() - match.prompt <= wanted.n_max) return match;
        return match_prefix(held, n_held, prompt, n);
    }

    Found match(const Sequence &held, const Wanted &wanted) const {
        return match(held.tokens, held.tokens.size(), held.scope, &held.checkpoints, &held.logits, wanted);
    }

    // The place with the longest match. Among equal matches, an idle slot comes first, then the most recently used.
    Source find(const Wanted &wanted, const std::vector<Live> &live) {
        Source best;
        const auto offer = [&best](const Source &source) {
            const bool same = source.keep.prompt == best.keep.prompt;
            if (source.keep.prompt > best.keep.prompt || (same && source.used > best.used)) best = source;
        };
        for (const auto &snapshot : snapshots_) {
            const Sequence &held = snapshot->sequence;
            const Found found = match(held, wanted);
            offer({found.keep, found.rewind, found.logits, &held.tokens, &held.checkpoints, -1, false, snapshot,
                   held.used});
        }
        for (const auto &each : live) {
            if (!each.shared) continue;
            const Found found =
                match(*each.tokens, each.n_past, *each.scope, each.checkpoints, each.logits, wanted);
            offer({found.keep, found.rewind, found.logits, each.tokens, each.checkpoints, each.slot, true, nullptr,
                   clock_});
        }
        for (int i = 0; i < static_cast<int>(slots_.size()); i++) {
            const Sequence &held = slots_[i].sequence;
            if (slots_[i].busy) continue;
            const Found found = match(held, wanted);
            const uint64_t used = clock_ + 1 + held.used;
            offer(
                {found.keep, found.rewind, found.logits, &held.tokens, &held.checkpoints, i, false, nullptr, used});
        }
        return best;
    }

    // The file with the longest match, or null if no file is worth loading. `held` is the longest match elsewhere.
    const Stored *better_file(size_t held, const Wanted &wanted) const {
        const Stored *best = nullptr;
        size_t most = held + kLeastSaved - 1;
        for (const auto &file : files_) {
            if (file.size > budget_) continue;
            const size_t found = match(file.sequence, wanted).keep.prompt;
            if (found <= most) continue;
            if (wanted.token_us > 0 && us_per_file_byte_ * file.size > wanted.token_us * (found - held)) continue;
            most = found;
            best = &file;
        }
        return best;
    }

    // The length of the longest prefix of the prompt that a running request is still computing, or 0.
    size_t being_computed(const Wanted &wanted, const std::vector<Live> &live) const {
        size_t most = 0;
        for (const auto &each : live) {
            if (!each.shared || *each.scope != *wanted.scope) continue;
            size_t all = match_prefix(*each.tokens, each.tokens->size(), *wanted.prompt, wanted.n_reusable).prompt;
            if (!any_cut_) all = each.marks ? last_mark(*each.marks, all) : 0;
            if (all > each.n_past) most = std::max(most, all);
        }
        return most;
    }

    // The position of the last planned checkpoint after at most `n` tokens, or 0.
    static size_t last_mark(const std::vector<size_t> &marks, size_t n) {
        const auto beyond = std::upper_bound(marks.begin(), marks.end(), n);
        return beyond == marks.begin() ? 0 : *(beyond - 1);
    }

    void place(Source &best, const Wanted &wanted, Plan &plan) {
        const int other = other_slot(best, wanted);
        const bool costly = other >= 0 && slots_[best.slot].sequence.tokens.size() > kMostCopied * best.keep.held;
        if ((best.keep.prompt < kLeastShared && !best.logits) || costly) {
            // Any match with the slot that the request gets is kept, however short.
            plan.slot = victim();
            const Sequence &held = slots_[plan.slot].sequence;
            const Found found = match(held, wanted);
            best = {found.keep,   found.rewind,      found.logits,
                    &held.tokens, &held.checkpoints, plan.slot,
                    false,        nullptr,           0};
            plan.save = worth_saving(plan.slot, best.keep.held);
        } else if (other >= 0) {
            plan.slot = other;
            plan.copy_from = best.slot;
            plan.save = worth_saving(other, 0);
        } else if (best.slot >= 0 && !best.live) {
            plan.slot = best.slot;
            plan.save = branches(best, wanted) && worth_saving(best.slot, best.keep.held);
        } else {
            plan.slot = victim();
            plan.copy_from = best.slot;
            plan.restore = best.snapshot;
            if (best.snapshot) best.snapshot->sequence.used = clock_;
            plan.save = worth_saving(plan.slot, 0);
        }
        plan.keep = best.keep;
        plan.rewind = best.rewind;
        plan.logits = best.logits;
        if (best.checkpoints) plan.checkpoints = *best.checkpoints;
        plan.checkpoints.cut(plan.keep.held);
        const Tokens &prompt = *wanted.prompt;
        const auto kept = best.tokens->begin() + plan.keep.held;
        if (!std::equal(best.tokens->begin(), kept, prompt.begin(), prompt.begin() + plan.keep.prompt)) {
            plan.prompt.assign(best.tokens->begin(), kept);
            plan.prompt.insert(plan.prompt.end(), prompt.begin() + plan.keep.prompt, prompt.end());
        }
    }

    // Whether the request begins another conversation, whose first tokens are those of the idle slot `best`.
    bool branches(const Source &best, const Wanted &wanted) const {
        if (best.slot < 0 || best.live) return false;
        const Sequence &held = slots_[best.slot].sequence;
        const bool same = !held.session.empty() && held.session == *wanted.session;
        return !same && held.tokens.size() >= best.keep.held + kLeastSaved;
    }

    // The slot for a conversation that branches off, or -1 if it takes the slot from which it branches. It takes that
    // slot only if no slot is empty, and if half of the slot's tokens stay or the slot is the first to evict.
    int other_slot(const Source &best, const Wanted &wanted) const {
        if (!branches(best, wanted)) return -1;
        const int empty = empty_slot();
        if (empty >= 0 || best.keep.held * 2 >= slots_[best.slot].sequence.tokens.size()) return empty;
        const int given = oldest();
        return given == best.slot ? -1 : given;
    }

    // Whether cutting a slot to `kept` tokens would lose tokens that no snapshot holds.
    bool worth_saving(int slot, size_t kept) const {
        const Sequence &sequence = slots_[slot].sequence;
        return sequence.tokens.size() >= kept + kLeastSaved && budget_ > 0 && !saved(sequence);
    }

    int empty_slot() const {
        for (int i = 0; i < static_cast<int>(slots_.size()); i++) {
            if (!slots_[i].busy && slots_[i].sequence.tokens.empty()) return i;
        }
        return -1;
    }

    int victim() const {
        const int empty = empty_slot();
        return empty >= 0 ? empty : oldest();
    }

    // Drops the checkpoints and logits of one idle slot, in the order of eviction. Returns false if no idle slot has
    // any.
    bool drop_checkpoints() {
        Sequence *oldest = nullptr;
        for (auto &slot : slots_) {
            if (slot.busy || (slot.sequence.checkpoints.empty() && !slot.sequence.logits)) continue;
            if (!oldest || sooner(slot.sequence, *oldest)) oldest = &slot.sequence;
        }
        if (!oldest) return false;
        oldest->checkpoints.cut(0);
        oldest->logits.reset();
        return true;
    }

    void drop(size_t i) {
        bytes_ -= snapshots_[i]->size;
        snapshots_.erase(snapshots_.begin() + i);
        count();
    }

    void count() {
        size_t n = 0;
        for (const auto &slot : slots_) n += slot.sequence.tokens.size();
        for (const auto &snapshot : snapshots_) n += snapshot->sequence.tokens.size();
        tokens_ = n;
    }

    Miss reason(const Wanted &wanted, const Source &best) const {
        const size_t enough = std::max(wanted.n_reusable / 2, kLeastShared);
        Miss why = misses_.reason(*wanted.prompt, *wanted.scope, enough);
        if (why != Miss::none) return why;
        const auto look = [&](const Sequence &held) {
            if (held.scope == *wanted.scope || why == Miss::model) return;
            const Match found = match_prefix(held.tokens, held.tokens.size(), *wanted.prompt, wanted.n_reusable);
            if (found.prompt >= enough) why = same_user(held.scope, *wanted.scope) ? Miss::model : Miss::other_user;
        };
        for (const auto &slot : slots_) look(slot.sequence);
        for (const auto &snapshot : snapshots_) look(snapshot->sequence);
        for (const auto &file : files_) look(file.sequence);
        if (why != Miss::none) return why;
        return best.keep.prompt >= kLeastShared ? Miss::changed : Miss::first;
    }

    std::vector<Slot> slots_;
    std::vector<std::shared_ptr<Snapshot>> snapshots_;
    std::vector<Stored> files_;
    std::deque<Sequence> no_files_;
    std::function<void(std::shared_ptr<Snapshot>)> on_evict_;
    Misses misses_;
    const size_t budget_;
    const bool any_cut_;
    const PieceOf text_of_;
    std::atomic<size_t> bytes_{0}, tokens_{0};  // bytes of the snapshots; tokens of idle slots and snapshots
    const CheckpointBytes checkpoint_bytes_ = std::make_shared<std::atomic<size_t>>(0);
    uint64_t clock_ = 0;
    double us_per_byte_ = 0, us_per_file_byte_ = 0;
};

}  // namespace inferd
