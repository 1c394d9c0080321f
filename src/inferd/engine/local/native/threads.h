// How many threads a decode step gets.
//
// ggml's threads wait for each other by spinning, some hundred times in a step. A thread that loses its core
// to another program stalls all of them: two threads on two busy cores can be fifty times slower than one. So
// the count is never taken for granted. Decode steps are timed; now and then a few steps run with another
// count and the faster one is kept; and a step of several threads that takes much longer than usual is cut
// off (`deadline`) and done again with half of them. Before anything is usual, the single-thread baseline is what one
// thread alone would need, which is measured when the model is loaded.
//
// Times are microseconds of a monotonic clock. A step computes either some `prompt` tokens or `rows` tokens of answers:
// one of each sequence, and drafts. Steps of answers are compared with such steps of as many rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace inferd {

class ThreadGovernor {
  public:
    // `fixed`: the operator has named the count; it is never changed and no step is cut off.
    ThreadGovernor(int threads, bool fixed, int max_rows)
        : max_(threads), threads_(threads), fixed_(fixed), pace_(max_rows + 1) {}

    int threads() const { return probing_ ? candidate_ : threads_; }

    // What one token takes on one thread.
    void set_yardstick(int64_t one_token) { one_token_ = static_cast<double>(one_token); }

    // Expected µs for each further prompt token, 0 = not known yet.
    double prompt_pace() const { return prompt_pace_; }

    // What one thread alone would need for a step, in µs; 0 = not known yet.
    int64_t predicted(int rows, int prompt) const {
        return static_cast<int64_t>((rows + prompt) * std::max(one_token_, prompt_pace_));
    }

    // When a step that starts now is to be cut off; 0 = never.
    int64_t deadline(int64_t now, int rows, int prompt) const {
        if (fixed_ || threads() == 1) return 0;
        const Pace &pace = pace_[rows];
        const bool known = (rows == 0 || pace.steps >= kEnough) && (prompt == 0 || prompt_pace_ > 0);
        if (!known && one_token_ == 0) return 0;
        const double usual = known ? (rows ? pace.mean : 0) + prompt * prompt_pace_ : (rows + prompt) * one_token_;
        const int patience = !known ? 1 : probing_ && candidate_ > threads_ ? 3 : 8;
        return now + std::max<int64_t>(static_cast<int64_t>(usual * patience), kShortestCut);
    }

    // What a step of answers takes, as measured or by those that are next to it; 0 = not known yet.
    double usual(int rows) const {
        int below = rows, above = rows;
        while (below > 0 && !recent(below)) below--;
        if (below == rows || below == 0) return below == 0 ? 0 : pace_[rows].mean;
        const double from = pace_[below].mean;
        while (above < static_cast<int>(pace_.size()) && !recent(above)) above++;
        if (above < static_cast<int>(pace_.size())) {
            return from + (pace_[above].mean - from) * (rows - below) / (above - below);
        }
        // A row costs no less than a token of a prompt and no more than a step.
        const double row = prompt_pace_ > 0 ? std::min(prompt_pace_, from / below) : from / below / 2;
        return from + row * (rows - below);
    }

    // Whether counts of threads are, or should be, compared: only steps without drafts are alike.
    bool comparing(int64_t now) const { return probing_ || (next_probe_ != 0 && now >= next_probe_ && max_ > 1); }

    // A step took `elapsed`; `drafted` of its rows were drafts.
    void measured(int64_t now, int rows, int prompt, int64_t elapsed, int drafted = 0) {
        if (prompt > 0) {
            const double cost = static_cast<double>(elapsed) / (rows + prompt);
            prompt_pace_ = prompt_pace_ == 0 ? cost : prompt_pace_ + (cost - prompt_pace_) / 4;
        } else {
            measured_decode(now, rows, elapsed, drafted > 0);
        }
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
        int64_t last = 0;  // the number of the last one among all steps of answers
    };

    static constexpr int kEnough = 6;
    static constexpr int64_t kForgotten = 500;  // steps after which what a draft costs is found out again
    static constexpr int kProbeSteps = 3;
    static constexpr int64_t kShortestCut = 20'000;
    static constexpr int64_t kConfidence = 10'000'000;
    static constexpr int64_t kFirstBackoff = 1'000'000;
    static constexpr int64_t kLongestBackoff = 64'000'000;

    bool recent(int rows) const {
        const Pace &pace = pace_[rows];
        return pace.steps > 0 && (rows == 1 || steps_ - pace.last < kForgotten);
    }

    void measured_decode(int64_t now, int rows, int64_t elapsed, bool drafts) {
        if (probing_) {
            if (rows != probe_rows_) return end_probe(now, false);
            // The first step after a change also pays for waking the threads.
            if (++probe_steps_ > 1) probe_sum_ += elapsed;
            if (probe_steps_ <= kProbeSteps) return;
            return end_probe(now, probe_sum_ / kProbeSteps < pace_[rows].mean * 0.95);
        }
        Pace &pace = pace_[rows];
        const bool known = pace.steps >= kEnough;
        pace.last = ++steps_;
        if (known && elapsed > pace.mean * 1.5) {
            // Slower than usual again and again: another process is busy. Look for a better count soon.
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
        if (drafts || fixed_) return;
        if (known && next_probe_ == 0) {
            // Several threads that beat the single-thread baseline are right for now; others are compared at once.
            next_probe_ = pace.mean < one_token_ * rows ? now + kConfidence : now;
        }
        if (known && now >= next_probe_ && max_ > 1) start_probe(rows);
    }

    void start_probe(int rows) {
        candidate_ = threads_ == max_ ? std::max(1, threads_ / 2) : std::min(max_, threads_ * 2);
        probing_ = true;
        probe_rows_ = rows;
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
        prompt_pace_ *= static_cast<double>(threads_) / threads;
        threads_ = threads;
        slow_ = 0;
        std::fill(pace_.begin(), pace_.end(), Pace());
    }

    const int max_;
    int threads_;
    const bool fixed_;
    std::vector<Pace> pace_;
    double prompt_pace_ = 0;  // µs a prompt token at `threads_`, smoothed
    double one_token_ = 0;
    bool probing_ = false;
    int candidate_ = 0;
    int probe_rows_ = 0;
    int probe_steps_ = 0;
    double probe_sum_ = 0;
    int64_t steps_ = 0;
    int slow_ = 0;
    int64_t backoff_ = kFirstBackoff;
    int64_t next_probe_ = 0;
};

}  // namespace inferd
