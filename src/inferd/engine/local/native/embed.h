// A llama.cpp context that turns token sequences into pooled vectors or scores.
//
// A batch is a set of whole sequences. llama.cpp ends the process for an empty batch and for a batch that is larger
// than its context, so `compute` checks the batch first. llama.cpp also ends the process for a position beyond the
// model's training context, so `n_ctx` must not be larger than that.
//
// A `ThreadGovernor` chooses the number of threads. It compares only steps with the same number of rows, but batches
// have any size. So a batch of n tokens is reported as a step of about log2(n) rows, each of which takes the time of
// one token. A batch that takes far longer than one thread alone would need is cut off and repeated with fewer threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "embed_input.h"
#include "host.h"
#include "llama.h"
#include "threads.h"

namespace inferd {

class Embedder {
  public:
    struct Params {
        int n_ctx = 0;                                 // the most tokens of one sequence and of a batch
        int n_seq = 0;                                 // the most sequences of a batch
        int pooling = LLAMA_POOLING_TYPE_UNSPECIFIED;  // unspecified: the pooling of the model file
        int threads = 0;                               // 0: chosen by a `ThreadGovernor`
        int flash_attention = LLAMA_FLASH_ATTN_TYPE_AUTO;
    };

    enum class Outcome : int { done = 0, interrupted, failed };

    // Returns null if llama.cpp cannot make the context. llama.cpp's log has the reason.
    static std::unique_ptr<Embedder> make(llama_model *model, const Params &params) noexcept {
        try {
            std::unique_ptr<Embedder> made(new Embedder(model, params));
            return made->ctx_ ? std::move(made) : nullptr;
        } catch (...) {
            return nullptr;
        }
    }

    ~Embedder() {
        if (ctx_) llama_free(ctx_);
        free_pool(pool_);
        llama_batch_free(batch_);
    }
    Embedder(const Embedder &) = delete;
    Embedder &operator=(const Embedder &) = delete;

    int pooling() const { return llama_pooling_type(ctx_); }
    int n_ctx() const { return n_ctx_; }
    const llama_context *context() const { return ctx_; }

    // The number of floats in a row: the size of the vector, or the number of the classifier's outputs. The first
    // output is the score.
    int width() const { return width_; }

    // Computes `tokens` as a batch on one thread, to measure the time of a token. Returns false if llama.cpp cannot.
    bool warm_up(const Tokens &tokens) noexcept {
        std::vector<float> row(width_);
        fill({tokens});
        for (int turn = 0; turn < 2; turn++) {  // the first turn also reads the weights into memory
            const int64_t started = llama_time_us();
            deadline_us_ = 0;
            if (run(1) != 0) return false;
            governor_.set_single_thread_baseline((llama_time_us() - started) / static_cast<int64_t>(tokens.size()));
        }
        return collect(1, row.data());
    }

    // Writes one row of `width()` floats for each sequence to `out`, in the order of the sequences.
    Outcome compute(const std::vector<Tokens> &sequences, float *out) noexcept {
        if (!fits(sequences)) return Outcome::failed;
        fill(sequences);
        const int n = batch_.n_tokens;
        int sequences_like = 1;
        while (n >> sequences_like) sequences_like++;
        while (!interrupted_.load(std::memory_order_relaxed)) {
            const int64_t started = llama_time_us();
            deadline_us_ = governor_.deadline(started, 0, n * kPatience);
            const int code = run(governor_.threads());
            const int64_t now = llama_time_us();
            if (code == 0) {
                governor_.measured(now, sequences_like, 0, (now - started) * sequences_like / n);
                return collect(sequences.size(), out) ? Outcome::done : Outcome::failed;
            }
            if (code != kAborted) return Outcome::failed;
            if (!interrupted_.load(std::memory_order_relaxed)) governor_.stalled(now);
        }
        return Outcome::interrupted;
    }

    // Ends the current computation and every further one until `resume`. Thread-safe.
    void interrupt() { interrupted_.store(true, std::memory_order_relaxed); }
    void resume() { interrupted_.store(false, std::memory_order_relaxed); }

  private:
    static constexpr int kAborted = 2;
    static constexpr int kPatience = 4;
    static constexpr int kMostSequences = 32;

    Embedder(llama_model *model, const Params &asked)
        : threads_(asked.threads ? asked.threads : useful_threads()),
          governor_(threads_, asked.threads != 0, kMostSequences), n_ctx_(asked.n_ctx),
          n_seq_(std::min(asked.n_seq, asked.n_ctx)), batch_(llama_batch_init(asked.n_ctx, 0, 1)) {
        llama_context_params params = llama_context_default_params();
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx_;
        params.n_seq_max = n_seq_;
        params.n_threads = params.n_threads_batch = threads_;
        params.pooling_type = static_cast<enum llama_pooling_type>(asked.pooling);
        params.flash_attn_type = static_cast<llama_flash_attn_type>(asked.flash_attention);
        params.embeddings = true;
        params.kv_unified = true;  // one cache of n_ctx tokens, whatever the number of sequences
        params.no_perf = true;
        params.abort_callback = give_up;
        params.abort_callback_data = this;
        ctx_ = llama_init_from_model(model, params);
        if (!ctx_) return;
        // llama.cpp may grant a smaller batch and context than it was asked for.
        n_ctx_ = std::min(n_ctx_, static_cast<int>(std::min(llama_n_batch(ctx_), llama_n_ctx_seq(ctx_))));
        memory_ = llama_get_memory(ctx_);
        pool_ = attach_pool(ctx_, threads_);
        width_ = pooling() == LLAMA_POOLING_TYPE_RANK ? static_cast<int>(llama_model_n_cls_out(model))
                                                      : llama_model_n_embd_out(model);
    }

    static bool give_up(void *data) {
        auto *self = static_cast<Embedder *>(data);
        return self->interrupted_.load(std::memory_order_relaxed) ||
               (self->deadline_us_ != 0 && llama_time_us() > self->deadline_us_);
    }

    bool fits(const std::vector<Tokens> &sequences) const {
        size_t n = 0;
        for (const Tokens &tokens : sequences) {
            if (tokens.empty()) return false;
            n += tokens.size();
        }
        return n > 0 && n <= static_cast<size_t>(n_ctx_) && sequences.size() <= static_cast<size_t>(n_seq_);
    }

    void fill(const std::vector<Tokens> &sequences) {
        int n = 0;
        for (size_t s = 0; s < sequences.size(); s++) {
            for (size_t i = 0; i < sequences[s].size(); i++, n++) {
                batch_.token[n] = sequences[s][i];
                batch_.pos[n] = static_cast<llama_pos>(i);
                batch_.n_seq_id[n] = 1;
                batch_.seq_id[n][0] = static_cast<llama_seq_id>(s);
                batch_.logits[n] = true;
            }
        }
        batch_.n_tokens = n;
    }

    int run(int threads) noexcept {
        llama_set_n_threads(ctx_, threads, threads);
        try {
            int code;
            if (memory_) {
                llama_memory_clear(memory_, false);
                code = llama_decode(ctx_, batch_);
            } else {
                code = llama_encode(ctx_, batch_);
            }
            llama_synchronize(ctx_);
            return code;
        } catch (...) {
            return kDecodeThrew;
        }
    }

    bool collect(size_t n, float *out) const {
        for (size_t s = 0; s < n; s++, out += width_) {
            const float *row = llama_get_embeddings_seq(ctx_, static_cast<llama_seq_id>(s));
            if (!row) return false;
            std::copy_n(row, width_, out);
        }
        return true;
    }

    const int threads_;
    ThreadGovernor governor_;
    int n_ctx_, n_seq_;
    llama_batch batch_;
    llama_context *ctx_ = nullptr;
    llama_memory_t memory_ = nullptr;
    void *pool_ = nullptr;
    int width_ = 0;
    int64_t deadline_us_ = 0;
    std::atomic<bool> interrupted_{false};
};

}  // namespace inferd
