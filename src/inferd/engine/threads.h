// How many threads a decode step gets.
//
// ggml's threads wait for each other by spinning, some hundred times in a step. A thread that loses its core
// to another program stalls all of them: two threads on two busy cores can be fifty times slower than one. So
// the count is never taken for granted. Decode steps are timed; now and then a few steps run with another
// count and the faster one is kept; and a step of several threads that takes much longer than usual is cut
// off (`deadline`) and done again with half of them.
//
// Times are microseconds of a monotonic clock. Steps are compared only with steps of as many sequences.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace inferd {

class ThreadGovernor {
  public:
    // `fixed`: the operator has named the count; it is never changed and no step is cut off.
    ThreadGovernor(int threads, bool fixed, int max_sequences)
        : max_(threads), threads_(threads), fixed_(fixed || threads == 1), pace_(max_sequences + 1) {}

    int threads() const { return probing_ ? candidate_ : threads_; }

    // When a step of `sequences` that starts now is to be cut off; 0 = never.
    int64_t deadline(int64_t now, int sequences) const {
        const Pace &pace = pace_[sequences];
        if (fixed_ || threads() == 1 || pace.steps < kEnough) return 0;
        const bool upward = probing_ && candidate_ > threads_;
        return now + std::max<int64_t>(static_cast<int64_t>(pace.mean * (upward ? 3 : 8)), kShortestCut);
    }

    // A decode step of `sequences` took `elapsed`.
    void measured(int64_t now, int sequences, int64_t elapsed) {
        if (fixed_) return;
        if (probing_) {
            if (sequences != probe_sequences_) return end_probe(now, false);
            // The first step after a change also pays for waking the threads.
            if (++probe_steps_ > 1) probe_sum_ += elapsed;
            if (probe_steps_ <= kProbeSteps) return;
            return end_probe(now, probe_sum_ / kProbeSteps < pace_[sequences].mean * 0.95);
        }
        Pace &pace = pace_[sequences];
        const bool known = pace.steps >= kEnough;
        if (known && elapsed > pace.mean * 1.5) {
            // Slower than usual again and again: somebody else is at work. Look for a better count soon.
            if (++slow_ >= kEnough) {
                slow_ = 0;
                backoff_ = kFirstBackoff;
                next_probe_ = std::min(next_probe_, now);
                pace.mean = static_cast<double>(elapsed);
            }
        } else {
            slow_ = 0;
            pace.mean = pace.steps == 0 ? elapsed : pace.mean + (elapsed - pace.mean) / 8;
        }
        pace.steps++;
        if (known && now >= next_probe_) start_probe(sequences);
    }

    // The step was cut off at its deadline.
    void stalled(int64_t now) {
        if (probing_) return end_probe(now, false);
        move_to(std::max(1, threads_ / 2));
        // Going up again at once would meet the same neighbour.
        backoff_ = std::min(backoff_ * 2, kLongestBackoff);
        next_probe_ = now + backoff_;
    }

  private:
    struct Pace {
        double mean = 0;  // µs a step at `threads_`, smoothed
        int steps = 0;
    };

    static constexpr int kEnough = 6;
    static constexpr int kProbeSteps = 3;
    static constexpr int64_t kShortestCut = 20'000;
    static constexpr int64_t kFirstBackoff = 1'000'000;
    static constexpr int64_t kLongestBackoff = 64'000'000;

    void start_probe(int sequences) {
        candidate_ = threads_ == max_ ? std::max(1, threads_ / 2) : std::min(max_, threads_ * 2);
        probing_ = true;
        probe_sequences_ = sequences;
        probe_steps_ = 0;
        probe_sum_ = 0;
    }

    void end_probe(int64_t now, bool better) {
        probing_ = false;
        if (better) {
            move_to(candidate_);
            backoff_ = kFirstBackoff;
        } else {
            backoff_ = std::min(backoff_ * 2, kLongestBackoff);
        }
        next_probe_ = now + backoff_;
    }

    void move_to(int threads) {
        threads_ = threads;
        slow_ = 0;
        std::fill(pace_.begin(), pace_.end(), Pace());
    }

    const int max_;
    int threads_;
    const bool fixed_;
    std::vector<Pace> pace_;
    bool probing_ = false;
    int candidate_ = 0;
    int probe_sequences_ = 0;
    int probe_steps_ = 0;
    double probe_sum_ = 0;
    int slow_ = 0;
    int64_t backoff_ = kFirstBackoff;
    int64_t next_probe_ = 0;
};

}  // namespace inferd
