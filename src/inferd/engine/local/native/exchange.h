// The jobs shared by the event loop and the engine thread.
//
// Ownership of a `Job`:
// - Before `submit`, the caller (a preparing thread) owns it. From then on `jobs_` owns the memory.
// - The engine thread gets a pointer from `intake`. Until it publishes the job as finished, it alone reads and writes
//   the fields, except those that the mutex guards. The other side sees only the guarded ones, through `cancel` and
//   `collect`; `cancel` also stops its sampler, which allows that from any thread. Frames move from `staged` (the
//   engine's) to `out` (guarded) in `publish`.
// - Once `publish` has set `finished`, the engine thread no longer uses its pointers. `collect` then hands the job,
//   with all its fields, to its caller. A dropped job is deleted instead: by `publish`, or by `cancel` if it has
//   finished.
//
// Ownership of the exchange's fields: the mutex guards `jobs_`, `inbox_`, `ready_`, `last_id_`, `stopping_`, `called_`
// and `interruptible_`. The atomics are read without it: `interrupt_` between the nodes of a step, so that a cancel
// takes effect within it, and the others by the watchdog. Only the engine thread writes those others. `fds_` are fixed.
//
// The engine thread takes the mutex three or four times a step (`intake`, `begin_step`, `publish`). It holds the mutex
// only to move pointers and append bytes, and never touches Python. A `publish` with new output writes to the wake-up
// descriptor once.
//
// Over 400 lines, because every function here depends on the ownership rules above.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cache/checkpoints.h"
#include "sampling/drafts.h"
#include "sampling/logprobs.h"
#include "media.h"
#include "cache/types.h"
#include "sampling/sampling.h"
#include "text.h"

#ifdef __linux__
#include <sys/eventfd.h>
#endif
#include <fcntl.h>
#include <unistd.h>

namespace inferd {

// `refused`, `unavailable` and `broken` are failures: the request's, a temporary one, and the server's.
enum class Finish : int { running = 0, end, stop, length, cancelled, refused, unavailable, broken };

struct Job {
    // The request. Set before `submit` (`id` by it), then the engine thread's.
    uint64_t id = 0;
    size_t n_prompt = 0;
    uint32_t max_tokens = 0;
    bool wants_frames = false;
    std::string prefix, opening, suffix;  // `opening` goes between the text and the records of its tokens
    std::unique_ptr<Sampler> sampler;
    TextStream text;
    std::vector<llama_token> preserved;  // control tokens that are shown as text
    bool uses_cache = true;              // false: reuses nothing of other requests and leaves nothing to them
    int adapter = -1;                    // the number of its LoRA adapter, -1 = none
    std::string scope;                   // only requests of one scope share KV caches
    std::string session;                 // the client's name for the conversation, or empty

    // The engine thread's working state; `tokens`, `media`, `marks`, `logprobs` and `submitted_us` begin as submitted.
    std::vector<llama_token> tokens;  // the prompt and the answer
    std::vector<MediaSpan> media;     // the spans at the prompt's kMediaToken
    size_t n_past = 0;                // how many of the tokens are in the KV cache
    size_t n_cached = 0;              // how many of them came from the cache
    std::vector<size_t> marks;        // positions of checkpoints, ascending; empty in models that can drop a tail
    Checkpoints checkpoints;
    Checkpoints::Each logits;  // after the prompt; null in a job that shares nothing, or without room
    Miss miss = Miss::none;
    uint32_t fetching = 0;  // the file it waits for, 0 = none
    bool fetched = false;   // it has waited for a file
    int slot = -1;
    int logits_row = -1;  // row of this job's logits in the step, -1 = none
    size_t in_step = 0;   // how many of its tokens the step holds
    size_t n_draft = 0;   // how many draft tokens follow them
    Drafter drafter;
    size_t came = 0;                     // how many of the step's draft tokens were accepted
    uint32_t drafted = 0, accepted = 0;  // draft tokens computed, and accepted
    std::string staged;                  // frames made since the last publish
    std::string content;                 // the whole answer, JSON-escaped
    Logprobs logprobs;
    std::string records;  // of tokens that no frame carried
    Finish finish = Finish::running;
    const char *error = "";
    int64_t submitted_us = 0, seated_us = 0, prefilled_us = 0, first_us = 0, finished_us = 0;

    // Guarded by the exchange's mutex.
    bool cancel = false;     // set by `cancel`, read by `intake` and `begin_step`
    bool dropped = false;    // it will not be collected
    bool finished = false;   // set by `publish`: the engine thread no longer has it
    bool announced = false;  // in `ready_`, not collected since
    double read = 0;         // the share of the prompt that was in the KV cache at the last turn; 0: it waits
    std::string out;         // frames not yet collected

    bool shows(llama_token token) const {
        return std::find(preserved.begin(), preserved.end(), token) != preserved.end();
    }
    size_t n_completion() const { return tokens.size() - n_prompt; }
    // The span whose first position comes next, or null.
    const MediaSpan *next_media() const {
        for (const auto &span : media) {
            if (span.at == n_past) return &span;
        }
        return nullptr;
    }
    // How many tokens come before the next span, the next mark or the end.
    size_t text_ahead() const {
        size_t end = tokens.size();
        for (size_t mark : marks) {
            if (mark > n_past) end = std::min(end, mark);
        }
        for (const auto &span : media) {
            if (span.at > n_past) end = std::min(end, span.at);
        }
        return end - n_past;
    }
    // KV cache cells that its media take beyond their positions.
    size_t extra_cells() const {
        size_t extra = 0;
        for (const auto &span : media) extra += span.n_cells - std::min(span.n_cells, span.n_pos);
        return extra;
    }
    // How many tokens from the start may come from the cache without the logits: none of media, and at least two are
    // computed again, because ggml computes a single token with other kernels than several.
    size_t n_reusable() const {
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        return std::min(end, tokens.size() > 2 ? tokens.size() - 2 : 0);
    }
    // How many of its tokens stay in the cache when it has ended.
    size_t n_kept() const {
        if (!uses_cache) return 0;
        return media.empty() ? n_past : std::min(n_past, media[0].at);
    }
    // The first `match.prompt` tokens come from the cache; `prompt`, if not empty, is the prompt with those tokens.
    void begin_at(const Match &match, const std::vector<llama_token> &prompt) {
        n_past = n_cached = match.held;
        if (prompt.empty()) return;
        for (auto &span : media) span.at += prompt.size() - tokens.size();
        marks.erase(marks.begin(), std::upper_bound(marks.begin(), marks.end(), match.prompt));
        for (auto &mark : marks) mark += prompt.size() - tokens.size();
        tokens = prompt;
        n_prompt = prompt.size();
    }
    // Plans checkpoints where `turns` begin and before the prompt's end, up to its first medium.
    void mark(const std::vector<size_t> &turns) {
        marks = turns;
        if (tokens.size() > Checkpoints::kBeforeEnd) marks.push_back(tokens.size() - Checkpoints::kBeforeEnd);
        std::sort(marks.begin(), marks.end());
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        const auto of_no_use = [&](size_t mark) { return mark < Checkpoints::kLeast || mark >= end; };
        marks.erase(std::remove_if(marks.begin(), marks.end(), of_no_use), marks.end());
    }
    bool at_mark() const { return std::binary_search(marks.begin(), marks.end(), n_past); }
    // Only the first `n` tokens are in the KV cache after all.
    void fall_back_to(size_t n) {
        n_past = n;
        n_cached = std::min(n_cached, n);
    }
    // How many draft tokens the answer and the context have room for, besides the token that each step yields.
    size_t room_for_draft(size_t n_ctx) const {
        const size_t used = tokens.size() + extra_cells();
        return std::min<size_t>(max_tokens - n_completion() - 1, n_ctx > used ? n_ctx - used : 0);
    }
    bool prefilling() const { return tokens.size() - n_past > 1 || tokens.size() == n_prompt; }
};

// llama.cpp computes sequences of neighbouring slots together.
inline void sort_by_slot(std::vector<Job *> &jobs) {
    std::sort(jobs.begin(), jobs.end(), [](const Job *a, const Job *b) { return a->slot < b->slot; });
}

class Exchange {
  public:
    // Bytes of uncollected frames at which a sequence pauses: about 1,000 tokens.
    static constexpr size_t kHighWater = 64 * 1024;

    Exchange() {
#ifdef __linux__
        fds_[0] = fds_[1] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
#else
        if (pipe(fds_) == 0) {
            for (int fd : fds_) {
                fcntl(fd, F_SETFL, O_NONBLOCK);
                fcntl(fd, F_SETFD, FD_CLOEXEC);
            }
        }
#endif
    }
    ~Exchange() {
        if (fds_[0] >= 0) close(fds_[0]);
        if (fds_[1] >= 0 && fds_[1] != fds_[0]) close(fds_[1]);
    }
    Exchange(const Exchange &) = delete;
    Exchange &operator=(const Exchange &) = delete;

    // The event loop's side.

    int fd() const { return fds_[0]; }

    uint64_t submit(std::unique_ptr<Job> job) {
        std::lock_guard<std::mutex> lock(mutex_);
        job->id = ++last_id_;
        const uint64_t id = job->id;
        inbox_.push_back(job.get());
        jobs_.emplace(id, std::move(job));
        rouse();
        return id;
    }

    // Ends a job soon. `drop` also discards its output, and its id becomes invalid.
    void cancel(uint64_t id, bool drop) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = jobs_.find(id);
        if (found == jobs_.end()) return;
        Job *job = found->second.get();
        if (drop && job->finished) {
            jobs_.erase(found);
            return;
        }
        job->cancel = true;
        job->dropped = job->dropped || drop;
        if (job == interruptible_) interrupt_.store(true, std::memory_order_relaxed);
        if (job->sampler) job->sampler->stop();
        rouse();
    }

    void stop() {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        interrupt_.store(true, std::memory_order_relaxed);
        work_.notify_one();
    }

    // For the watchdog: the number of turns of the loop, the time since the current one began or is due (0: the loop
    // has nothing to do), and its expected time (0: not known).
    void pulse(uint64_t &steps, int64_t &busy_us, int64_t &predicted_us) const {
        const int64_t since = busy_since_us_.load(std::memory_order_relaxed);
        steps = steps_.load(std::memory_order_relaxed);
        busy_us = since == 0 ? 0 : std::max<int64_t>(1, llama_time_us() - since);
        predicted_us = predicted_us_.load(std::memory_order_relaxed);
    }

    // The ids with new output, each once until it is collected. Resets the wake-up descriptor.
    std::vector<uint64_t> ready() {
        uint64_t buffer[8];
        while (read(fds_[0], buffer, sizeof buffer) == static_cast<ssize_t>(sizeof buffer)) {}
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(ready_, {});
    }

    // Moves a job's frames into `out`. Returns the job itself when it is finished.
    std::unique_ptr<Job> collect(uint64_t id, std::string &out) {
        out.clear();
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = jobs_.find(id);
        if (found == jobs_.end()) return nullptr;
        Job *job = found->second.get();
        const bool rested = job->out.size() >= kHighWater;
        out.swap(job->out);
        job->announced = false;
        if (rested) rouse();
        if (!job->finished) return nullptr;
        std::unique_ptr<Job> whole = std::move(found->second);
        jobs_.erase(found);
        return whole;
    }

    // The share of a job's prompt that has been computed or found in the cache.
    double read_share(uint64_t id) {
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = jobs_.find(id);
        return found == jobs_.end() ? 1 : found->second->read;
    }

    // Makes the loop take a turn, even without a job.
    void call() {
        std::lock_guard<std::mutex> lock(mutex_);
        called_ = true;
        rouse();
    }

    // The engine thread's side.

    // Wakes the event loop, even without new output.
    void wake() {
        const uint64_t one = 1;
        // A full pipe or counter means that a wake-up is already pending.
        if (write(fds_[1], &one, sizeof one) < 0) return;
    }

    // Moves new jobs to the end of `waiting`, marks cancelled ones in both lists as finished, and lists in
    // `active` the running ones whose client keeps up. Sleeps while there is no work, at first for at most
    // `idle_after`; after that `idle` is true until a job comes. False: stop.
    bool intake(std::vector<Job *> &waiting, std::vector<Job *> &running, std::vector<Job *> &active, size_t slots,
                std::chrono::milliseconds idle_after, bool &idle) {
        std::unique_lock<std::mutex> lock(mutex_);
        while (!stopping_) {
            waiting.insert(waiting.end(), inbox_.begin(), inbox_.end());
            inbox_.clear();
            active.clear();
            bool cancelled = false;
            for (auto *list : {&waiting, &running}) {
                for (Job *job : *list) {
                    if (job->cancel && job->finish == Finish::running) {
                        job->finish = Finish::cancelled;
                        cancelled = true;
                    }
                }
            }
            for (Job *job : running) {
                const double share = double(job->n_past) / job->n_prompt;
                job->read = job->prefilling() ? std::min(share, 1.0) : 1;
                if (job->finish == Finish::running && job->out.size() < kHighWater) active.push_back(job);
            }
            const auto fetches = [](const Job *job) { return job->fetching != 0; };
            const bool seatable = running.size() < slots && !std::all_of(waiting.begin(), waiting.end(), fetches);
            const bool nothing = running.empty() && waiting.empty();
            idle = idle && nothing;
            if (cancelled || called_ || !active.empty() || seatable) {
                called_ = false;
                predicted_us_.store(0, std::memory_order_relaxed);
                busy_since_us_.store(llama_time_us(), std::memory_order_relaxed);
                return true;
            }
            predicted_us_.store(0, std::memory_order_relaxed);
            busy_since_us_.store(0, std::memory_order_relaxed);
            if (idle || !nothing || idle_after.count() == 0) {
                work_.wait(lock);
            } else if (work_.wait_for(lock, idle_after) == std::cv_status::timeout && inbox_.empty() && !called_) {
                idle = true;
                return !stopping_;
            }
        }
        return false;
    }

    // Begins a step, of the job `prompt` alone unless that is null; from here to `publish` a cancel of that job
    // interrupts the step. A step of several jobs is never interrupted for one of them. False: the job is already
    // cancelled or the loop stops, so skip the step.
    bool begin_step(const Job *prompt) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_ || (prompt && prompt->cancel)) return false;
        interruptible_ = prompt;
        interrupt_.store(false, std::memory_order_relaxed);
        return true;
    }

    bool interrupted() const { return interrupt_.load(std::memory_order_relaxed); }

    // The expected time of the current step.
    void expect(int64_t us) { predicted_us_.store(us, std::memory_order_relaxed); }

    // Hands a step's output to the event loop. Finished jobs no longer belong to the engine thread.
    void publish(const std::vector<Job *> &jobs) {
        bool wakes = false;
        steps_.fetch_add(1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            interruptible_ = nullptr;
            for (Job *job : jobs) {
                const bool finished = job->finish != Finish::running;
                if (job->dropped) {
                    job->staged.clear();
                    const uint64_t id = job->id;
                    if (finished) jobs_.erase(id);  // deletes the job
                    continue;
                }
                if (job->staged.empty() && !finished) continue;
                job->out += job->staged;
                job->staged.clear();
                job->finished = finished;
                if (!job->announced) {
                    job->announced = true;
                    ready_.push_back(job->id);
                    wakes = true;
                }
            }
        }
        if (wakes) wake();
    }

  private:
    // Wakes the loop, under the lock. Its next turn is due from now on, even if its thread does not wake.
    void rouse() {
        int64_t asleep = 0;
        busy_since_us_.compare_exchange_strong(asleep, llama_time_us(), std::memory_order_relaxed);
        work_.notify_one();
    }

    std::mutex mutex_;
    std::condition_variable work_;
    std::unordered_map<uint64_t, std::unique_ptr<Job>> jobs_;
    std::vector<Job *> inbox_;
    std::vector<uint64_t> ready_;
    uint64_t last_id_ = 0;
    bool stopping_ = false;
    bool called_ = false;
    const Job *interruptible_ = nullptr;
    std::atomic<bool> interrupt_{false};
    std::atomic<uint64_t> steps_{0};
    std::atomic<int64_t> busy_since_us_{0}, predicted_us_{0};
    int fds_[2] = {-1, -1};
};

}  // namespace inferd
