// Chooses the number of threads for each step.
//
// ggml's threads wait for each other by spinning, some hundred times in a step. A thread that loses its core
// to another program stalls all of them: two threads on two busy cores can be fifty times slower than one.
// Therefore the governor measures. It times decode steps. Now and then it runs a few steps with another number of
// threads, and keeps the faster number. If a step of several threads takes much longer than usual (`deadline`), the
// governor cuts it off, and the step is repeated with half as many threads. Until there are measurements, a step may
// take only as long as one thread alone would need, as measured when the model is loaded. So even the first prompt does
// not stall on a busy machine. Without decode steps, as for answers of one token, prompt steps try more threads again.
//
// Times are microseconds of a monotonic clock. A step computes either `prompt` tokens of a prompt, or `rows` tokens of
// answers (a decode step): one for each sequence, and draft tokens. A decode step is compared only with decode steps of
// as many rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace inferd {

class ThreadGovernor {
  public:
    // `fixed`: the operator has set the number of threads. It never changes, and no step is cut off.
    ThreadGovernor(int threads, bool fixed, int max_rows)
        : max_(threads), threads_(threads), fixed_(fixed), pace_(max_rows + 1) {}

    int threads() const { return probing_ ? candidate_ : threads_; }

    // Sets the single-thread baseline: the time of one token on one thread.
    void set_single_thread_baseline(int64_t one_token) { one_token_ = static_cast<double>(one_token); }

    // Expected µs for each further prompt token, 0 = not known yet.
    double prompt_pace() const { return prompt_pace_; }

    // While other sequences decode, the prompt steps between two decode steps may take about `kPromptShare`. Returns
    // how many tokens of a long prompt fit into that time.
    size_t chunk() const {
        return prompt_pace_ > 0 ? std::max(static_cast<size_t>(kPromptShare / prompt_pace_), kLeastChunk)
                                : SIZE_MAX;
    }
    // Several short prompts can share `kPromptShare`: whether `tokens`, the rest of a prompt, still fit after `spent`
    // µs.
    bool fits(int64_t spent, size_t tokens) const {
        return spent == 0 || (prompt_pace_ > 0 && spent + tokens * prompt_pace_ <= kPromptShare);
    }

    // The expected time of a step, by the slower of the single-thread baseline and the prompt pace; 0 = not known yet.
    int64_t predicted(int rows, int prompt) const {
        return static_cast<int64_t>((rows + prompt) * std::max(one_token_, prompt_pace_));
    }

    // When to cut off a step that starts now; 0 = never.
    int64_t deadline(int64_t now, int rows, int prompt) const {
        if (fixed_ || threads() == 1) return 0;
        const Pace &pace = pace_[rows];
        const bool known = (rows == 0 || pace.steps >= kEnough) && (prompt == 0 || prompt_pace_ > 0);
        if (!known && one_token_ == 0) return 0;
        const double usual = known ? (rows ? pace.mean : 0) + prompt * prompt_pace_ : (rows + prompt) * one_token_;
        // Until the pace is known, the limit is the time of one thread. A probe with more threads is cut off earlier.
        const int patience = !known ? 1 : probing_ && candidate_ > threads_ ? 3 : 8;
        return now + std::max<int64_t>(static_cast<int64_t>(usual * patience), kShortestCut);
    }

    // The usual time of a decode step, measured or interpolated from neighbouring row counts; 0 = not known yet.
    double usual(int rows) const {
        int below = rows, above = rows;
        while (below > 0 && !recent(below)) below--;
        if (below == rows || below == 0) return below == 0 ? 0 : pace_[rows].mean;
        const double from = pace_[below].mean;
        while (above < static_cast<int>(pace_.size()) && !recent(above)) above++;
        if (above < static_cast<int>(pace_.size())) {
            return from + (pace_[above].mean - from) * (rows - below) / (above - below);
        }
        // No larger step was measured. A further row takes about the time of a token of a prompt, but at most that of
        // an average row.
        const double row = prompt_pace_ > 0 ? std::min(prompt_pace_, from / below) : from / below / 2;
        return from + row * (rows - below);
    }

    // Whether a comparison of thread counts is running or due. Only steps without drafts can be compared.
    bool comparing(int64_t now) const { return probing_ || (next_probe_ != 0 && now >= next_probe_ && max_ > 1); }

    // Records that a step took `elapsed`, and that `drafted` of its rows were draft tokens.
    void measured(int64_t now, int rows, int prompt, int64_t elapsed, int drafted = 0) {
        if (prompt > 0) {
            const double cost = static_cast<double>(elapsed) / (rows + prompt);
            if (probing_ && probe_rows_ == kPromptProbe) {
                return end_probe(now, rows == 0 && cost < prompt_pace_ * kGain);
            }
            prompt_pace_ = prompt_pace_ == 0 ? cost : prompt_pace_ + (cost - prompt_pace_) / 4;
            const bool due = next_probe_ != 0 && now >= next_probe_ && steps_ == probed_steps_;
            if (rows == 0 && !probing_ && due && threads_ < max_) start_probe(kPromptProbe);
        } else {
            measured_decode(now, rows, elapsed, drafted > 0);
        }
    }

    // Records that a step was cut off at its deadline.
    void stalled(int64_t now) {
        if (probing_) return end_probe(now, false);
        move_to(std::max(1, threads_ / 2));
        // Wait before trying more threads: the program that uses the cores is probably still running.
        backoff_ = std::min(backoff_ * 2, kLongestBackoff);
        next_probe_ = now + backoff_;
        probed_steps_ = steps_;
    }

  private:
    struct Pace {
        double mean = 0;  // µs per step with `threads_` threads, smoothed
        int steps = 0;
        int64_t last = 0;  // the number of its latest step among all decode steps
    };

    // After this many steps a mean counts as known. After as many slow steps in a row, the machine counts as busy.
    static constexpr int kEnough = 6;
    // A mean that is older than this many decode steps is not used, so that the cost of a draft is measured again. The
    // mean of steps with one row is always used, so that `usual` has a base.
    static constexpr int64_t kForgotten = 500;
    // How many steps of a probe are timed. One more step runs before them, which takes longer because it wakes threads.
    static constexpr int kProbeSteps = 3;
    // The `probe_rows_` of a probe that times one prompt step.
    static constexpr int kPromptProbe = 0;
    // Only a gain of 5 % changes the number of threads.
    static constexpr double kGain = 0.95;
    // The time of the prompt steps between two decode steps.
    static constexpr double kPromptShare = 50'000;
    // The smallest chunk of a prompt between two decode steps, so that every prompt advances.
    static constexpr size_t kLeastChunk = 16;
    // No step is cut off before this time, however short it usually is.
    static constexpr int64_t kShortestCut = 20'000;
    // The first probe waits this long if several threads are faster than the single-thread baseline.
    static constexpr int64_t kConfidence = 10'000'000;
    // The pause before the next probe, at first and after a probe that found a better number of threads. Each probe
    // without a gain, and each step that is cut off, doubles the pause up to the longest, so that probing stays cheap
    // while the machine stays busy.
    static constexpr int64_t kFirstBackoff = 1'000'000;
    static constexpr int64_t kLongestBackoff = 64'000'000;

    bool recent(int rows) const {
        const Pace &pace = pace_[rows];
        return pace.steps > 0 && (rows == 1 || steps_ - pace.last < kForgotten);
    }

    void measured_decode(int64_t now, int rows, int64_t elapsed, bool drafts) {
        if (probing_) {
            if (rows != probe_rows_) return end_probe(now, false);
            // The first step after a change takes longer, because it wakes threads.
            if (++probe_steps_ > 1) probe_sum_ += elapsed;
            if (probe_steps_ <= kProbeSteps) return;
            return end_probe(now, probe_sum_ / kProbeSteps < pace_[rows].mean * kGain);
        }
        Pace &pace = pace_[rows];
        const bool known = pace.steps >= kEnough;
        pace.last = ++steps_;
        if (known && elapsed > pace.mean * 1.5) {
            // If steps are repeatedly slower than usual, another process is busy. Probe for a better number soon.
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
            // Threads that are faster than the single-thread baseline are kept for now. Otherwise probe at once.
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
        probed_steps_ = steps_;
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
    double prompt_pace_ = 0;  // µs per prompt token with `threads_` threads, smoothed
    double one_token_ = 0;
    bool probing_ = false;
    int candidate_ = 0;
    int probe_rows_ = 0;
    int probe_steps_ = 0;
    double probe_sum_ = 0;
    int64_t steps_ = 0;         // decode steps
    int64_t probed_steps_ = 0;  // decode steps before the last probe or cut-off
    int slow_ = 0;
    int64_t backoff_ = kFirstBackoff;
    int64_t next_probe_ = 0;
};

}  // namespace inferd
