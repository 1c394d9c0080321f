// The LoRA adapters of a model, and their turns in the decode steps.
//
// llama.cpp computes a whole batch with one adapter or none. Sequences with the same adapter share their decoding
// steps. Different adapters take turns of a few steps each, because llama.cpp rebuilds the graph at every change of
// the adapter.
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

    void add(llama_adapter_lora *adapter, float scale) {
        adapters_.push_back(adapter);
        scales_.push_back(scale);
    }

    // Call this for a new context, which has no adapter yet.
    void forget() { in_force_ = kNone; }

    // Makes the context compute with `adapter`.
    void apply(llama_context *ctx, int adapter) {
        if (adapter == in_force_) return;
        const bool any = adapter != kNone;
        llama_set_adapters_lora(ctx, any ? &adapters_[adapter] : nullptr, any, any ? &scales_[adapter] : nullptr);
        in_force_ = adapter;
    }

    // Returns the adapter of the next decode step. The adapters take turns in ascending order. At least one job must
    // be decoding. Sets `decoders` to the number of decoding jobs with this adapter.
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
    std::vector<float> scales_;  // the strength of each adapter
    int in_force_ = kNone;
    int turn_ = kNone;
    int steps_ = 0;
};

}  // namespace inferd
