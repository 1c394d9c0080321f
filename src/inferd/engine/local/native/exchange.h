// The jobs that the event loop and the engine thread share.
//
// Ownership of a `Job`:
// - Before `submit`, the caller (a preparing thread) owns it. From then on `jobs_` owns the memory.
// - The engine thread gets a pointer from `intake`. Until it publishes the job as finished, it alone reads and writes
//   the fields, except those that the mutex guards. The event loop uses only the guarded fields, in `cancel`,
//   `read_share` and `collect`. `cancel` also stops the job's sampler, which any thread may do. `publish` moves frames
//   from `staged` (not guarded) to `out` (guarded).
// - Once `publish` has set `finished`, the engine thread no longer uses its pointers. `collect` then returns the job
//   with all its fields to its caller. A dropped job is deleted instead: by `publish`, or by `cancel` if it has
//   finished.
//
// Ownership of the exchange's fields: the mutex guards `jobs_`, `inbox_`, `ready_`, `last_id_`, `stopping_`, `called_`
// and `interruptible_`. The atomics are read without the mutex. The engine thread reads `interrupt_` between the nodes
// of a step's graph, so that a cancel takes effect within the step. The watchdog reads `steps_`, `predicted_us_` and
// `busy_since_us_`. Only the engine thread writes these three, except that `rouse` sets `busy_since_us_` for a loop
// that sleeps. `fds_` never change.
//
// The engine thread takes the mutex three or four times a step (`intake`, `begin_step`, `publish`). It holds the mutex
// only to move pointers and append bytes, and never touches Python. A `publish` with new output writes to the wake-up
// descriptor once.
//
// This file has over 400 lines, because every function here depends on the ownership rules above.
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

// Three of them are failures. `refused`: of this request. `unavailable`: temporary. `broken`: of the server.
enum class Finish : int { running = 0, end, stop, length, cancelled, refused, unavailable, broken };

struct Job {
    // The request. `submit` sets `id`, and its caller the other fields. Afterwards only the engine thread uses them.
    uint64_t id = 0;
    size_t n_prompt = 0;
    uint32_t max_tokens = 0;
    bool wants_frames = false;
    std::string prefix, opening, suffix;  // `opening` goes between the text and the records of its tokens
    std::unique_ptr<Sampler> sampler;
    TextStream text;
    std::vector<llama_token> preserved;  // control tokens that are shown as text
    bool uses_cache = true;  // false: neither uses prefixes of other requests nor leaves its own to them
    int adapter = -1;        // the number of its LoRA adapter, -1 = none
    std::string scope;       // only requests of one scope share KV caches
    std::string session;     // the client's name for the conversation, or empty

    // The state of the job. Only the engine thread uses it. The caller of `submit` sets the first values of `tokens`,
    // `media`, `marks`, `logprobs` and `submitted_us`.
    std::vector<llama_token> tokens;  // the prompt and the answer
    std::vector<MediaSpan> media;     // the spans at the prompt's kMediaToken
    size_t n_past = 0;                // how many of the tokens are in the KV cache
    size_t n_cached = 0;              // how many of them came from the cache
    std::vector<size_t> marks;        // positions of planned checkpoints, ascending; empty if the model needs none
    Checkpoints checkpoints;
    Checkpoints::Each logits;  // the logits after the prompt; null if the cache is not used or has no room
    Miss miss = Miss::none;
    uint32_t fetching = 0;  // the id of the file for which the job waits, 0 = none
    bool fetched = false;   // the job has waited for a file
    int slot = -1;
    int logits_row = -1;  // row of this job's logits in the step, -1 = none
    size_t in_step = 0;   // how many of its tokens the step computes
    size_t n_draft = 0;   // how many draft tokens follow them
    Drafter drafter;
    size_t came = 0;                     // how many of the step's draft tokens were accepted
    uint32_t drafted = 0, accepted = 0;  // draft tokens computed, and accepted
    std::string staged;                  // frames made since the last publish
    std::string content;                 // the whole answer, JSON-escaped
    Logprobs logprobs;
    std::string records;  // the records of tokens that no frame has carried yet
    Finish finish = Finish::running;
    const char *error = "";
    int64_t submitted_us = 0, seated_us = 0, prefilled_us = 0, first_us = 0, finished_us = 0;

    // Guarded by the exchange's mutex.
    bool cancel = false;     // set by `cancel`, read by `intake` and `begin_step`
    bool dropped = false;    // the job will not be collected
    bool finished = false;   // set by `publish`: the engine thread no longer uses the job
    bool announced = false;  // its id was added to `ready_` after the last `collect`
    double read = 0;  // the share of the prompt in the KV cache at the loop's last turn; 0 while the job waits
    std::string out;  // frames not yet collected

    bool shows(llama_token token) const {
        return std::find(preserved.begin(), preserved.end(), token) != preserved.end();
    }
    size_t n_completion() const { return tokens.size() - n_prompt; }
    // The image or sound at the next position to compute, or null.
    const MediaSpan *next_media() const {
        for (const auto &span : media) {
            if (span.at == n_past) return &span;
        }
        return nullptr;
    }
    // How many tokens come before the next image or sound, the next planned checkpoint or the end.
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
    // How many more cells of the KV cache than positions its media take.
    size_t extra_cells() const {
        size_t extra = 0;
        for (const auto &span : media) extra += span.n_cells - std::min(span.n_cells, span.n_pos);
        return extra;
    }
    // How many of its first tokens may come from the cache if the logits do not. Media are always computed again. So
    // are at least two tokens, because ggml computes a single token with other kernels than several, and the results
    // differ slightly.
    size_t n_reusable() const {
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        return std::min(end, tokens.size() > 2 ? tokens.size() - 2 : 0);
    }
    // How many of its tokens stay in the KV cache after its end.
    size_t n_kept() const {
        if (!uses_cache) return 0;
        return media.empty() ? n_past : std::min(n_past, media[0].at);
    }
    // Takes the first `match.prompt` tokens of the prompt from the cache. If `prompt` is not empty, it replaces the
    // prompt: it has the same text and begins with the tokens in the cache.
    void begin_at(const Match &match, const std::vector<llama_token> &prompt) {
        n_past = n_cached = match.held;
        if (prompt.empty()) return;
        for (auto &span : media) span.at += prompt.size() - tokens.size();
        marks.erase(marks.begin(), std::upper_bound(marks.begin(), marks.end(), match.prompt));
        for (auto &mark : marks) mark += prompt.size() - tokens.size();
        tokens = prompt;
        n_prompt = prompt.size();
    }
    // Plans checkpoints at the positions `turns` and shortly before the prompt's end, but none after its first image or
    // sound.
    void mark(const std::vector<size_t> &turns) {
        marks = turns;
        if (tokens.size() > Checkpoints::kBeforeEnd) marks.push_back(tokens.size() - Checkpoints::kBeforeEnd);
        std::sort(marks.begin(), marks.end());
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        const auto of_no_use = [&](size_t mark) { return mark < Checkpoints::kLeast || mark >= end; };
        marks.erase(std::remove_if(marks.begin(), marks.end(), of_no_use), marks.end());
    }
    bool at_mark() const { return std::binary_search(marks.begin(), marks.end(), n_past); }
    // Records that only the first `n` tokens are still in the KV cache.
    void fall_back_to(size_t n) {
        n_past = n;
        n_cached = std::min(n_cached, n);
    }
    // How many draft tokens fit into the answer and the context, besides the token that each step yields.
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
    // A job pauses while this many bytes of its frames are not collected. They are about 1,000 tokens.
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

    // Called by the event loop.

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

    // Ends a job soon. With `drop`, its output is discarded and its id becomes invalid.
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

    // For the watchdog. `steps`: a counter that grows in every turn of the loop. `busy_us`: the time since the current
    // turn began or was due; 0 if the loop has nothing to do. `predicted_us`: the expected time of the current step; 0
    // if it is not known.
    void pulse(uint64_t &steps, int64_t &busy_us, int64_t &predicted_us) const {
        const int64_t since = busy_since_us_.load(std::memory_order_relaxed);
        steps = steps_.load(std::memory_order_relaxed);
        busy_us = since == 0 ? 0 : std::max<int64_t>(1, llama_time_us() - since);
        predicted_us = predicted_us_.load(std::memory_order_relaxed);
    }

    // Returns the ids of jobs with new output. An id is returned once, and again only after its job was collected.
    // Resets the wake-up descriptor.
    std::vector<uint64_t> ready() {
        uint64_t buffer[8];
        while (read(fds_[0], buffer, sizeof buffer) == static_cast<ssize_t>(sizeof buffer)) {}
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(ready_, {});
    }

    // Moves a job's frames into `out`. If the job is finished, also returns the job.
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

    // The share of a job's prompt that was computed or found in the cache.
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

    // Called by the engine thread.

    // Wakes the event loop, even without new output.
    void wake() {
        const uint64_t one = 1;
        // A full pipe or counter means that a wake-up is already pending.
        if (write(fds_[1], &one, sizeof one) < 0) return;
    }

    // Moves new jobs to the end of `waiting`, and marks cancelled jobs in `waiting` and `running` as finished. Lists in
    // `active` the running jobs whose output is collected fast enough. Sleeps while there is no work. After
    // `idle_after` without a job, sets `idle` and returns; the next job resets `idle`. Returns false if the loop must
    // stop.
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

    // Begins a step. If `prompt` is not null, the step computes only this job, and a cancel of the job interrupts the
    // step. A step of several jobs is not interrupted when one of them is cancelled. Returns false if the step must be
    // skipped, because the job is already cancelled or the loop stops.
    bool begin_step(const Job *prompt) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_ || (prompt && prompt->cancel)) return false;
        interruptible_ = prompt;
        interrupt_.store(false, std::memory_order_relaxed);
        return true;
    }

    bool interrupted() const { return interrupt_.load(std::memory_order_relaxed); }

    // Tells the watchdog the expected time of the current step.
    void expect(int64_t us) { predicted_us_.store(us, std::memory_order_relaxed); }

    // Passes the new output of the jobs to the event loop. Afterwards the engine thread must not use finished jobs.
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
    // Wakes the engine thread. The caller holds the mutex. For the watchdog, the loop is busy from now on, so that it
    // notices a thread that does not wake.
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
