// Samples a token from logits.
//
// The order of the chain: penalties, top-k, top-p, min-p, temperature, draw. At temperature 0 the likeliest token is
// taken. Shortcuts give the same result in less time: penalties change only the logits of the tokens to which they
// apply, the likeliest token needs no candidate list, and one pass over the vocabulary selects the top-k, or the top-p
// if there is no top-k. A grammar or a guide checks only the drawn token, and filters the whole vocabulary only if it
// refuses that token. As the first sampler of the chain, it would check the whole vocabulary for every token.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "sampling/gbnf.h"
#include "guards/grammar_limits.h"
#include "sampling/guidance.h"
#include "llama.h"
#include "sampling/nucleus.h"
#include "sampling/penalties.h"

namespace inferd {

struct SamplingParams {
    float temperature;
    float top_p;
    float min_p;
    float repeat_penalty;
    float presence_penalty;
    float frequency_penalty;
    int32_t top_k;  // 0 = off
    uint32_t seed;
};

struct Grammar {
    std::string text;                   // GBNF with a rule `root`; empty: none
    bool lazy = false;                  // applies only from the first trigger on
    std::vector<std::string> triggers;  // regular expressions on the text of the answer
    std::vector<llama_token> trigger_tokens;
    std::vector<llama_token> prefill;  // the part of the text that is already in the prompt
};

class Sampler {
  public:
    // Returns null with the reason in `error` if the grammar cannot be used.
    static std::unique_ptr<Sampler> make(const llama_vocab *vocab, const SamplingParams &params,
                                         const Grammar &grammar, std::string &error) noexcept {
        try {
            std::unique_ptr<Sampler> sampler(new Sampler(llama_vocab_n_tokens(vocab)));
            if (!grammar.text.empty()) sampler->parse_grammar(vocab, grammar);
            sampler->build_chain(params);
            return sampler;
        } catch (const std::exception &e) {
            error = e.what();
            return nullptr;
        }
    }

    // Constrains the answer to `guide` from here on.
    void follow(std::unique_ptr<Guide> guide) noexcept { guide_ = std::move(guide); }

    // Ends the computation of the grammar or the guide, from any thread. Afterwards no token is allowed.
    void stop() noexcept {
        stopped_.store(true, std::memory_order_relaxed);
        if (guide_) guide_->stop()->stop();
    }
    // Whether `stop` has ended a computation of `sample`.
    bool stopped() const noexcept { return matching_stopped_ || (guide_ && guide_->stop()->stopped()); }

    // Whether a grammar or a guide constrains the answer.
    bool constrained() const noexcept { return grammar_ || guide_; }

    // Whether the guide ends the answer here.
    bool complete() noexcept { return guide_ && guide_->complete(); }

    // The tokens that the guide forces next.
    std::vector<llama_token> forced() noexcept { return guide_ ? guide_->forced() : std::vector<llama_token>(); }

    // The next token for one row of logits, or -1 if none is allowed.
    llama_token sample(const float *logits) noexcept {
        try {
            if (grammar_) grammar_deadline = thread_time() + kGrammarTime;
            grammar_stop = &stopped_;
            logits = penalties_.apply(logits, n_vocab_);
            llama_token token = draw(logits, false);
            if (!allowed(token)) token = draw(logits, true);
            if (token < 0 || (guide_ && !guide_->accept(token))) return -1;
            if (grammar_) llama_sampler_accept(grammar_.get(), token);
            llama_sampler_accept(chain_.get(), token);
            penalties_.accept(token);
            return token;
        } catch (const ClientLeft &) {
            matching_stopped_ = true;
            return -1;
        } catch (const std::exception &) {
            return -1;  // the grammar allows no token, or not within its time limit
        }
    }

  private:
    struct Free {
        void operator()(llama_sampler *sampler) const { llama_sampler_free(sampler); }
    };
    using Owned = std::unique_ptr<llama_sampler, Free>;

    static constexpr int32_t kMaxPicked = 1024;  // for a larger top-k, a heap is no faster than a sort

    static constexpr int64_t kGrammarTime = 2'000'000'000;  // ns per token, enough for four thousand alternatives
    static constexpr uint32_t kSeedInItsPlace = 0x9E3779B9;
    static constexpr float kGreedyBelow = 1e-6f;  // dividing by less makes all logits infinite

    explicit Sampler(int32_t n_vocab) : n_vocab_(n_vocab) {}

    void parse_grammar(const llama_vocab *vocab, const Grammar &grammar) {
        GbnfCheck::check(grammar.text);
        grammar_error.clear();
        grammar_deadline = thread_time() + kGrammarTime;
        if (grammar.lazy) {
            std::vector<const char *> triggers;
            for (const auto &trigger : grammar.triggers) triggers.push_back(trigger.c_str());
            grammar_.reset(llama_sampler_init_grammar_lazy_patterns(
                vocab, grammar.text.c_str(), "root", triggers.data(), triggers.size(),
                grammar.trigger_tokens.data(), grammar.trigger_tokens.size()));
        } else {
            grammar_.reset(llama_sampler_init_grammar(vocab, grammar.text.c_str(), "root"));
        }
        if (!grammar_) {
            throw std::runtime_error(
                grammar_error.empty() ? "it has no rule `root`, or a rule that begins with itself" : grammar_error);
        }
        if (grammar.lazy) return;
        for (llama_token token : grammar.prefill) llama_sampler_accept(grammar_.get(), token);
    }

    void build_chain(const SamplingParams &p) {
        llama_sampler_chain_params chain_params = llama_sampler_chain_default_params();
        chain_params.no_perf = true;
        chain_.reset(llama_sampler_chain_init(chain_params));
        auto add = [this](llama_sampler *sampler) { llama_sampler_chain_add(chain_.get(), sampler); };

        penalties_ = Penalties(p.repeat_penalty, p.presence_penalty, p.frequency_penalty);
        best_only_ = p.temperature < kGreedyBelow;
        if (best_only_) {
            add(llama_sampler_init_greedy());
            return;
        }
        pick_ = p.top_k > 0 && p.top_k <= kMaxPicked ? std::min(p.top_k, n_vocab_) : 0;
        if (p.top_k <= 0 && p.top_p < 1.0f) nucleus_ = p.top_p;
        if (p.top_k > 0) add(llama_sampler_init_top_k(p.top_k));
        if (p.top_p < 1.0f) add(llama_sampler_init_top_p(p.top_p, 1));
        if (p.min_p > 0.0f) add(llama_sampler_init_min_p(p.min_p, 1));
        add(llama_sampler_init_temp(p.temperature));
        // llama.cpp treats its default seed as a request for a random one.
        add(llama_sampler_init_dist(p.seed == LLAMA_DEFAULT_SEED ? kSeedInItsPlace : p.seed));
    }

    llama_token draw(const float *logits, bool constrained) {
        if (best_only_ && !constrained) return best(logits);
        int first = 0;  // the first sampler of the chain that is still to apply
        if (constrained && guide_) {
            if (!take_allowed(logits)) return -1;
        } else if (pick_ > 0 && !constrained) {
            pick_top(logits);
        } else if (nucleus_ > 0 && !constrained) {
            nucleus(logits, n_vocab_, nucleus_, candidates_);
            first = 1;
        } else {
            take_all(logits);
        }
        llama_token_data_array array = {candidates_.data(), candidates_.size(), -1, pick_ > 0 && !constrained};
        if (constrained && grammar_) llama_sampler_apply(grammar_.get(), &array);
        for (int i = first; i < llama_sampler_chain_n(chain_.get()); i++) {
            llama_sampler_apply(llama_sampler_chain_get(chain_.get(), i), &array);
        }
        if (array.selected < 0) return -1;
        const llama_token_data &chosen = array.data[array.selected];
        return std::isinf(chosen.logit) ? -1 : chosen.id;
    }

    bool allowed(llama_token token) {
        if (token < 0) return true;
        return (!grammar_ || grammar_allows(token)) && (!guide_ || guide_->allows(token));
    }

    bool grammar_allows(llama_token token) {
        llama_token_data one = {token, 1.0f, 0.0f};
        llama_token_data_array array = {&one, 1, -1, false};
        llama_sampler_apply(grammar_.get(), &array);
        return !std::isinf(one.logit);
    }

    llama_token best(const float *logits) const {
        llama_token best = 0;
        float bar = logits[0];
        above(logits, 1, n_vocab_, bar, [&](llama_token id) {
            best = id;
            bar = logits[id];
        });
        return best;
    }

    void take_all(const float *logits) {
        candidates_.resize(n_vocab_);
        for (llama_token id = 0; id < n_vocab_; id++) candidates_[id] = {id, logits[id], 0.0f};
    }

    // Takes the tokens that the guide allows; false if it allows none.
    bool take_allowed(const float *logits) {
        const uint32_t *mask = guide_->mask();
        candidates_.clear();
        for (llama_token first = 0; mask && first < n_vocab_; first += 32) {
            const uint32_t word = mask[first / 32];
            if (!word) continue;
            for (llama_token id = first; id < std::min(first + 32, n_vocab_); id++) {
                if (word >> (id - first) & 1) candidates_.push_back({id, logits[id], 0.0f});
            }
        }
        return !candidates_.empty();
    }

    // Takes the `pick_` best candidates, best first, in one pass with a heap.
    void pick_top(const float *logits) {
        auto better = [](const llama_token_data &a, const llama_token_data &b) { return a.logit > b.logit; };
        candidates_.resize(pick_);
        for (llama_token id = 0; id < pick_; id++) candidates_[id] = {id, logits[id], 0.0f};
        std::make_heap(candidates_.begin(), candidates_.end(), better);
        float bar = candidates_.front().logit;
        above(logits, pick_, n_vocab_, bar, [&](llama_token id) {
            std::pop_heap(candidates_.begin(), candidates_.end(), better);
            candidates_.back() = {id, logits[id], 0.0f};
            std::push_heap(candidates_.begin(), candidates_.end(), better);
            bar = candidates_.front().logit;
        });
        std::sort_heap(candidates_.begin(), candidates_.end(), better);
    }

    const int32_t n_vocab_;
    bool best_only_ = false;
    int32_t pick_ = 0;
    float nucleus_ = 0;  // the top-p, if it is the first sampler of the chain
    Penalties penalties_;
    Owned chain_;
    Owned grammar_;
    std::unique_ptr<Guide> guide_;
    std::atomic<bool> stopped_{false};
    bool matching_stopped_ = false;
    std::vector<llama_token_data> candidates_;
};

}  // namespace inferd
