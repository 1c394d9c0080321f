// The LoRA adapters of a model, and whose turn it is.
//
// llama.cpp computes a whole batch with one adapter or none. So sequences that decode with the same one share their
// steps, and those with different ones take turns, a few steps each, because every change has llama.cpp lay out the
// step anew.
#pragma once

#include <algorithm>
#include <vector>

#include "exchange.h"
#include "llama.h"

namespace inferd {

class Adapters {
  public:
    static constexpr int kNone = -1;
    static constexpr int kStepsOfATurn = 4;

    void add(llama_adapter_lora *adapter) { adapters_.push_back(adapter); }

    // The context is a new one.
    void forget() { in_force_ = kNone; }

    // Has the context compute with the adapter of this number from now on.
    void apply(llama_context *ctx, int adapter) {
        if (adapter == in_force_) return;
        float scale = 1.0f;
        llama_adapter_lora **chosen = adapter == kNone ? nullptr : &adapters_[adapter];
        llama_set_adapters_lora(ctx, chosen, chosen ? 1 : 0, chosen ? &scale : nullptr);
        in_force_ = adapter;
    }

    // The adapter of the next step for the jobs that decode, of which there is at least one; `decoders` becomes the
    // number of those that have it.
    int turn(const std::vector<Job *> &active, size_t &decoders) {
        if (adapters_.empty()) return kNone;
        int next = kNone, least = kNone;
        bool has_next = false, has_least = false, stays = false;
        for (const Job *job : active) {
            if (job->prefilling()) continue;
            const int its = job->adapter;
            stays = stays || its == turn_;
            if (its > turn_ && (!has_next || its < next)) next = its, has_next = true;
            if (!has_least || its < least) least = its, has_least = true;
        }
        if (!stays || ++steps_ >= kStepsOfATurn) {
            turn_ = has_next ? next : least;
            steps_ = 0;
        }
        decoders = std::count_if(active.begin(), active.end(),
                                 [this](const Job *job) { return !job->prefilling() && job->adapter == turn_; });
        return turn_;
    }

  private:
    std::vector<llama_adapter_lora *> adapters_;
    int in_force_ = kNone;
    int turn_ = kNone;
    int steps_ = 0;
};

}  // namespace inferd
