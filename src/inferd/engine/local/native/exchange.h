// Where the event loop and the engine thread meet.
//
// A `Job` belongs to the exchange from `submit` until it is both finished by the engine and collected (or
// dropped) by the other side. One mutex guards everything both sides touch; the engine thread takes it twice
// a step (`intake`, `publish`), holds it for moves of strings only, and never touches Python. Each publish
// that has something for the event loop signals the wake-up descriptor once.
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
#include "cache/prefix_plan.h"
#include "sampling/sampling.h"
#include "text.h"

#ifdef __linux__
#include <sys/eventfd.h>
#endif
#include <fcntl.h>
#include <unistd.h>

namespace inferd {

// `refused`, `unavailable` and `broken` are failures: the client's, of the moment, and ours.
enum class Finish : int { running = 0, end, stop, length, cancelled, refused, unavailable, broken };

struct Job {
    // What was asked.
    uint64_t id = 0;
    size_t n_prompt = 0;
    uint32_t max_tokens = 0;
    bool wants_frames = false;
    std::string prefix, opening, suffix;  // `opening` goes between the text and the records of its tokens
    std::unique_ptr<Sampler> sampler;
    TextStream text;
    std::vector<llama_token> preserved;  // control tokens that are shown as text
    bool uses_cache = true;              // false: it takes nothing from earlier requests and leaves nothing
    int adapter = -1;                    // the number of its LoRA adapter, -1 = none
    std::string scope;                   // only requests of one scope share what they computed
    std::string session;                 // the client's name for the conversation, or empty

    // The engine thread's own.
    std::vector<llama_token> tokens;  // the prompt and what came after it
    std::vector<MediaSpan> media;     // what stands behind the prompt's kMediaToken
    size_t n_past = 0;                // how many of them are in the KV cache
    size_t n_cached = 0;              // how many of them it did not have to compute
    std::vector<size_t>
        marks;  // where checkpoints are kept, ascending; in no other model than those that need them
    Checkpoints checkpoints;
    Miss miss = Miss::none;
    uint32_t fetching = 0;  // the file it waits for
    bool fetched = false;   // it has waited for one
    int slot = -1;
    int logits_row = -1;  // row of this job's logits in the step, -1 = none
    size_t in_step = 0;   // how many of its tokens the step holds
    size_t n_draft = 0;   // how many tokens of its draft come after them
    Drafter drafter;
    uint32_t drafted = 0, accepted = 0;  // tokens of drafts that were computed, and that came
    std::string staged;                  // frames made since the last publish
    std::string content;                 // the whole answer, JSON-escaped
    Logprobs logprobs;
    std::string records;  // of what no frame has shown
    Finish finish = Finish::running;
    const char *error = "";
    int64_t submitted_us = 0, seated_us = 0, prefilled_us = 0, first_us = 0, finished_us = 0;

    // Guarded by the exchange's mutex.
    bool cancel = false;
    bool dropped = false;  // it will not be collected
    bool finished = false;
    bool announced = false;  // in `ready_`, not collected since
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
    // Cells of the cache that its media take beyond their positions.
    size_t extra_cells() const {
        size_t extra = 0;
        for (const auto &span : media) extra += span.n_cells - std::min(span.n_cells, span.n_pos);
        return extra;
    }
    // How many tokens from the start may come from the cache: none of media, and at least two are computed again,
    // because ggml computes a single token by other kernels than several.
    size_t n_reusable() const {
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        return std::min(end, tokens.size() > 2 ? tokens.size() - 2 : 0);
    }
    // How many of its tokens stay in the cache when it has ended.
    size_t n_kept() const {
        if (!uses_cache) return 0;
        return media.empty() ? n_past : std::min(n_past, media[0].at);
    }
    // The first `match.prompt` tokens come from the cache; `prompt`, if not empty, is the prompt with its tokens.
    void begin_at(const Match &match, const std::vector<llama_token> &prompt) {
        n_past = n_cached = match.held;
        if (prompt.empty()) return;
        for (auto &span : media) span.at += prompt.size() - tokens.size();
        marks.erase(marks.begin(), std::upper_bound(marks.begin(), marks.end(), match.prompt));
        for (auto &mark : marks) mark += prompt.size() - tokens.size();
        tokens = prompt;
        n_prompt = prompt.size();
    }
    // Has checkpoints kept where `turns` begin and before the prompt's end, ahead of its media.
    void mark(const std::vector<size_t> &turns) {
        marks = turns;
        if (tokens.size() > Checkpoints::kBeforeEnd) marks.push_back(tokens.size() - Checkpoints::kBeforeEnd);
        std::sort(marks.begin(), marks.end());
        const size_t end = media.empty() ? tokens.size() : media[0].at;
        const auto of_no_use = [&](size_t mark) { return mark < Checkpoints::kLeast || mark >= end; };
        marks.erase(std::remove_if(marks.begin(), marks.end(), of_no_use), marks.end());
    }
    bool at_mark() const { return std::binary_search(marks.begin(), marks.end(), n_past); }
    // Nothing or less of it is in the cache after all.
    void fall_back_to(size_t n) {
        n_past = n;
        n_cached = std::min(n_cached, n);
    }
    // How many tokens of a draft there is use and room for, beside the token that a step brings in any case.
    size_t room_for_draft(size_t n_ctx) const {
        const size_t used = tokens.size() + extra_cells();
        return std::min<size_t>(max_tokens - n_completion() - 1, n_ctx > used ? n_ctx - used : 0);
    }
    bool prefilling() const { return tokens.size() - n_past > 1 || tokens.size() == n_prompt; }
};

// Sequences whose slots follow each other are computed together.
inline void sort_by_slot(std::vector<Job *> &jobs) {
    std::sort(jobs.begin(), jobs.end(), [](const Job *a, const Job *b) { return a->slot < b->slot; });
}

class Exchange {
  public:
    // Frames a reader may leave uncollected before its sequence rests: about 1,000 tokens.
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
        work_.notify_one();
        return id;
    }

    // Ends a job soon. `drop`: and throws away what it made; its id is then no longer valid.
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
        work_.notify_one();
    }

    void stop() {
        std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
        interrupt_.store(true, std::memory_order_relaxed);
        work_.notify_one();
    }

    // For the watchdog of the loop: how many turns it has done, for how long the present one has been under way
    // (0: there is none), and how long it should take (0: not known).
    void pulse(uint64_t &steps, int64_t &busy_us, int64_t &predicted_us) const {
        const int64_t since = busy_since_us_.load(std::memory_order_relaxed);
        steps = steps_.load(std::memory_order_relaxed);
        busy_us = since == 0 ? 0 : std::max<int64_t>(1, llama_time_us() - since);
        predicted_us = predicted_us_.load(std::memory_order_relaxed);
    }

    // The ids that have something new, each once until it is collected. Resets the wake-up descriptor.
    std::vector<uint64_t> ready() {
        uint64_t buffer[8];
        while (read(fds_[0], buffer, sizeof buffer) == static_cast<ssize_t>(sizeof buffer)) {}
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(ready_, {});
    }

    // Moves a job's frames into `out`. When it is finished, also hands the job itself over.
    std::unique_ptr<Job> collect(uint64_t id, std::string &out) {
        out.clear();
        std::lock_guard<std::mutex> lock(mutex_);
        auto found = jobs_.find(id);
        if (found == jobs_.end()) return nullptr;
        Job *job = found->second.get();
        const bool rested = job->out.size() >= kHighWater;
        out.swap(job->out);
        job->announced = false;
        if (rested) work_.notify_one();
        if (!job->finished) return nullptr;
        std::unique_ptr<Job> whole = std::move(found->second);
        jobs_.erase(found);
        return whole;
    }

    // Has the loop take a turn although there may be no job for it.
    void call() {
        std::lock_guard<std::mutex> lock(mutex_);
        called_ = true;
        work_.notify_one();
    }

    // The engine thread's side.

    // Has the event loop look, although there may be nothing of a job for it.
    void wake() {
        const uint64_t one = 1;
        // A full pipe or counter means that a wake-up is already under way.
        if (write(fds_[1], &one, sizeof one) < 0) return;
    }

    // Moves new jobs to the end of `waiting`, marks cancelled ones in both lists as finished, and lists in
    // `active` the running ones whose reader keeps up. Sleeps while there is nothing to do, at first for no longer
    // than `idle_after`: then `idle` is true until there is a job. False: stop.
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
            if (idle || !nothing || idle_after.count() == 0) {
                work_.wait(lock);
            } else if (work_.wait_for(lock, idle_after) == std::cv_status::timeout && inbox_.empty() && !called_) {
                idle = true;
                return !stopping_;
            }
        }
        return false;
    }

    // A step begins, with a chunk of the prompt of `prompt` if that is not null; from here to `publish` a cancel
    // of that job interrupts the step. False: it is already cancelled, so the step is not worth beginning.
    bool begin_step(const Job *prompt) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_ || (prompt && prompt->cancel)) return false;
        interruptible_ = prompt;
        interrupt_.store(false, std::memory_order_relaxed);
        return true;
    }

    bool interrupted() const { return interrupt_.load(std::memory_order_relaxed); }

    // The step under way should take so long.
    void expect(int64_t us) { predicted_us_.store(us, std::memory_order_relaxed); }

    // Hands what a step made to the event loop; finished jobs are no longer the engine's after this.
    void publish(const std::vector<Job *> &jobs) {
        bool wakes = false;
        busy_since_us_.store(0, std::memory_order_relaxed);
        steps_.fetch_add(1, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            interruptible_ = nullptr;
            for (Job *job : jobs) {
                const bool finished = job->finish != Finish::running;
                if (job->dropped) {
                    job->staged.clear();
                    const uint64_t id = job->id;
                    if (finished) jobs_.erase(id);  // and with it the job
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
