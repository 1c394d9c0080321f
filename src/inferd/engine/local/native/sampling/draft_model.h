// Drafts the tokens of answers with a small model, which has the same vocabulary as the model that answers.
//
// The draft model has its own context with a slot for each slot of the engine. A slot holds the tokens that the draft
// model has computed. From the first token that differs from the tokens of the job, they are removed. All jobs of a
// step are drafted together. A draft ends where the draft model is unsure.
//
// `Earnings` compares the time that the drafts took with the time that their accepted tokens saved. If the
// drafts do not pay, drafting pauses, each time for longer.
//
// Only the engine thread uses this. Times are microseconds.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cache/match.h"
#include "host.h"
#include "llama.h"

namespace inferd {

// Whether the tokens of two vocabularies have the same ids. The longer vocabulary may end with a few more tokens: the
// models of some families fill up their vocabulary to different sizes.
inline bool same_vocabulary(const llama_vocab *one, const llama_vocab *other) {
    constexpr int32_t kMostMore = 256;
    const int32_t n_one = llama_vocab_n_tokens(one), n_other = llama_vocab_n_tokens(other);
    if (llama_vocab_type(one) != llama_vocab_type(other) || std::abs(n_one - n_other) > kMostMore) return false;
    for (llama_token token = 0; token < std::min(n_one, n_other); token++) {
        if (std::strcmp(llama_vocab_get_text(one, token), llama_vocab_get_text(other, token)) != 0) return false;
    }
    return true;
}

// Whether the drafts of a model have paid for their time lately.
class Earnings {
  public:
    // Counts a decode step. Returns false while drafting pauses.
    bool due() {
        if (pause_ == 0) return true;
        pause_--;
        return false;
    }

    // Records that the drafts of a step took the time `cost`, and that their accepted tokens saved the time `saved`.
    void add(double cost, double saved) {
        balance_ += (saved - cost - balance_) / kMemory;
        if (++steps_ < kTrial) return;
        if (balance_ < 0) return rest();
        next_pause_ = kShortestPause;
    }

    // Pauses drafting, for twice as long as the last time unless drafts have paid since.
    void rest() {
        pause_ = next_pause_;
        next_pause_ = std::min(2 * next_pause_, kLongestPause);
        balance_ = 0;
        steps_ = 0;
    }

  private:
    static constexpr double kMemory = 16;  // steps over which the balance is averaged
    static constexpr int kTrial = 8;       // steps before the balance counts
    static constexpr int kShortestPause = 32, kLongestPause = 1024;

    double balance_ = 0;
    int steps_ = 0, pause_ = 0, next_pause_ = kShortestPause;
};

// A job that wants a draft of at most `most` tokens. `tokens` are its prompt and its answer so far.
struct DraftWanted {
    int slot = 0;
    const Tokens *tokens = nullptr;
    size_t most = 0;
    Tokens draft;
};

class DraftModel {
  public:
    // Makes a context with `params`, the settings of the engine's context. Returns null if llama.cpp cannot make it, or
    // if the model cannot shorten a sequence.
    static std::unique_ptr<DraftModel> make(llama_model *model, llama_context_params params, int n_slots,
                                            void *pool) {
        if (llama_model_is_recurrent(model) || llama_model_is_hybrid(model)) return nullptr;
        params.n_outputs_max = n_slots;
        llama_context *ctx = llama_init_from_model(model, params);
        if (!ctx) return nullptr;
        std::unique_ptr<DraftModel> made(new DraftModel(model, ctx, n_slots));
        if (!llama_get_memory(ctx)) return nullptr;
        made->use_pool(pool);
        return made;
    }

    ~DraftModel() {
        llama_batch_free(batch_);
        llama_free(ctx_);
    }
    DraftModel(const DraftModel &) = delete;
    DraftModel &operator=(const DraftModel &) = delete;

    void use_pool(void *pool) {
        const auto shared = static_cast<ggml_threadpool *>(pool);
        if (shared) llama_attach_threadpool(ctx_, shared, shared);
    }

    // Decodes a token twice, which reads the weights into memory and measures a step. Returns false if llama.cpp
    // cannot.
    bool warm_up() {
        for (int turn = 0; turn < 2; turn++) {
            begin();
            add(0, 0, 0, true);
            const int64_t started = llama_time_us();
            if (!compute()) return false;
            step_us_ = static_cast<double>(llama_time_us() - started);
            llama_memory_seq_rm(llama_get_memory(ctx_), 0, -1, -1);
        }
        token_us_ = step_us_;
        return true;
    }

    const llama_context *context() const { return ctx_; }

    void set_threads(int threads) { llama_set_n_threads(ctx_, threads, threads); }

    // The time that a draft of `n` tokens takes if the slot lacks only the last few tokens of the job.
    double expected(size_t n) const { return step_us_ * static_cast<double>(n + 1); }

    // The time that it takes to compute the tokens that the job's slot lacks.
    double behind(const DraftWanted &wanted) const {
        const size_t known = agreed(slots_[wanted.slot], *wanted.tokens);
        return token_us_ * static_cast<double>(wanted.tokens->size() - known);
    }

    // Fills the `draft` of each job. If slots lack tokens of their jobs, each call computes as many of them as fit into
    // `allowance` µs, and the draft of a job stays empty until its slot has all tokens. Returns the µs spent on the
    // drafts, without the time for lacking tokens, or a negative number if llama.cpp failed or the step was cut off.
    double draft(std::vector<DraftWanted> &all, double allowance) {
        const size_t limit = std::clamp<size_t>(static_cast<size_t>(allowance / token_us_), kLeastChunk, n_batch_);
        std::vector<DraftWanted *> active, next;
        begin();
        for (auto &wanted : all) {
            if (wanted.most == 0 || wanted.tokens->size() + wanted.most > n_ctx_) continue;
            if (catch_up(wanted, limit)) active.push_back(&wanted);
        }
        if (batch_.n_tokens == 0) return 0;
        const int first = batch_.n_tokens;
        const int64_t started = llama_time_us();
        if (!compute()) return -1;
        int64_t at = llama_time_us(), spent = 0;
        if (first > static_cast<int>(all.size()) + kFew) {
            smooth(token_us_, static_cast<double>(at - started) / first);
        } else {
            spent = at - started;
        }
        while (!active.empty()) {
            begin();
            next.clear();
            for (DraftWanted *wanted : active) {
                const llama_token token = likeliest(wanted->slot);
                if (token < 0) continue;
                wanted->draft.push_back(token);
                if (wanted->draft.size() == wanted->most) continue;
                add(wanted->slot, token, slots_[wanted->slot].size(), true);
                next.push_back(wanted);
            }
            active.swap(next);
            if (batch_.n_tokens == 0) break;
            if (!compute()) return -1;
            const int64_t now = llama_time_us();
            smooth(step_us_, static_cast<double>(now - at));
            spent += now - at;
            at = now;
        }
        return static_cast<double>(spent);
    }

    Earnings earnings;

  private:
    static constexpr size_t kLeastChunk = 16;  // lacking tokens that each call may compute, whatever the allowance
    static constexpr int kFew = 8;             // computing this many lacking tokens takes hardly longer than one
    static constexpr double kSure = 0.5;       // a draft ends when it is less likely than this as a whole

    DraftModel(const llama_model *model, llama_context *ctx, int n_slots)
        : ctx_(ctx), n_vocab_(llama_vocab_n_tokens(llama_model_get_vocab(model))),
          n_ctx_(std::min<size_t>(llama_n_ctx_seq(ctx), llama_model_n_ctx_train(model))),
          n_batch_(llama_n_batch(ctx)), slots_(n_slots), rows_(n_slots), chances_(n_slots),
          batch_(llama_batch_init(static_cast<int32_t>(n_batch_), 0, 1)) {}

    static void smooth(double &mean, double value) { mean += (value - mean) / 8; }

    // How many first tokens of a slot equal those of a job. The last token of the job is always computed, so it does
    // not count.
    static size_t agreed(const Tokens &held, const Tokens &tokens) {
        const size_t most = std::min(held.size(), tokens.size() - 1);
        return std::mismatch(held.begin(), held.begin() + most, tokens.begin()).first - held.begin();
    }

    // Adds the tokens that a slot lacks to the batch, which may have `limit` tokens. Returns whether all of them fit.
    bool catch_up(const DraftWanted &wanted, size_t limit) {
        Tokens &held = slots_[wanted.slot];
        const size_t known = agreed(held, *wanted.tokens);
        if (held.size() > known) {
            if (!llama_memory_seq_rm(llama_get_memory(ctx_), wanted.slot, static_cast<llama_pos>(known), -1)) {
                forget(wanted.slot);
                return false;
            }
            held.resize(known);
        }
        const size_t end = std::min(wanted.tokens->size(), known + limit - batch_.n_tokens);
        for (size_t i = known; i < end; i++) {
            const llama_token token = (*wanted.tokens)[i];
            if (token < 0 || token >= n_vocab_) return false;  // the batch keeps the tokens before this one
            add(wanted.slot, token, i, i + 1 == wanted.tokens->size());
        }
        chances_[wanted.slot] = 1;
        return end == wanted.tokens->size();
    }

    void begin() { batch_.n_tokens = 0; }

    void add(int slot, llama_token token, size_t at, bool logits) {
        const int row = batch_.n_tokens++;
        batch_.token[row] = token;
        batch_.pos[row] = static_cast<llama_pos>(at);
        batch_.n_seq_id[row] = 1;
        batch_.seq_id[row][0] = slot;
        batch_.logits[row] = logits;
        if (logits) rows_[slot] = row;
    }

    // Decodes the batch. If that fails, empties the slots of the batch.
    bool compute() {
        const int code = decode(ctx_, batch_);
        llama_synchronize(ctx_);
        for (int row = 0; row < batch_.n_tokens; row++) {
            const int slot = batch_.seq_id[row][0];
            if (code == 0) {
                slots_[slot].push_back(batch_.token[row]);
            } else {
                forget(slot);
            }
        }
        return code == 0;
    }

    void forget(int slot) {
        llama_memory_seq_rm(llama_get_memory(ctx_), slot, -1, -1);
        slots_[slot].clear();
    }

    // The likeliest next token of a slot, or -1 if the draft with this token is unlikely as a whole.
    llama_token likeliest(int slot) {
        const float *logits = llama_get_logits_ith(ctx_, rows_[slot]);
        if (!logits) return -1;
        const auto best = static_cast<llama_token>(std::max_element(logits, logits + n_vocab_) - logits);
        float sum = 0;
        for (llama_token token = 0; token < n_vocab_; token++) sum += std::exp(logits[token] - logits[best]);
        chances_[slot] /= sum;
        return chances_[slot] >= kSure ? best : -1;
    }

    llama_context *const ctx_;
    const llama_token n_vocab_;
    const size_t n_ctx_, n_batch_;
    std::vector<Tokens> slots_;    // the tokens that each slot has computed
    std::vector<int> rows_;        // the row of each slot's logits
    std::vector<double> chances_;  // the probability of each slot's draft as a whole
    llama_batch batch_;
    // The time of a step with one token for each job, and the time of a token in a step with many tokens.
    double step_us_ = 1, token_us_ = 1;
};

}  // namespace inferd
