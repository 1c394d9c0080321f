// Passes states of sequences between the token loop and files.
//
// The token loop never waits for a file. It offers one state at a time to be saved (`offer`), and asks for states by
// the ids of their files (`want`). The event loop fetches both (`leaving`, `wanted`), has the daemon write and read the
// files, and reports the results (`saved`, `delivered`). The token loop applies these reports with `settle`. Nothing is
// saved before `open`.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "exchange.h"
#include "cache/prefix_cache.h"
#include "cache/state.h"

namespace inferd {

class Depot {
  public:
    explicit Depot(Exchange &exchange) : exchange_(exchange) {}

    // Called by the event loop.

    void open() {
        change([&] { open_ = true; });
    }

    // Registers a file. If `usable` is false, this context cannot load its state.
    void kept(Stored file, bool usable) {
        change([&] { (usable ? kept_ : outdated_).push_back(std::move(file)); });
    }

    // Delivers the state of a file: `data` has `size` bytes, or is null if the file is gone or damaged.
    void delivered(uint32_t id, std::unique_ptr<uint8_t[]> data, size_t size) {
        change([&] { delivered_.push_back({id, std::move(data), size}); });
    }

    // Reports that the state from `leaving` is in the file `id`, or was not written if `id` is 0, and that the files
    // `gone` are deleted.
    void saved(uint32_t id, std::vector<uint32_t> gone) {
        change([&] {
            gone_.insert(gone_.end(), gone.begin(), gone.end());
            if (leaving_ && id != 0) kept_.push_back({id, named(leaving_->sequence), leaving_->size});
            if (leaving_ && id == 0) refused_.push_back(named(leaving_->sequence));
            leaving_.reset();
            taken_ = false;
        });
    }

    // Starts saving every state that is in no file, one after the other. When all are saved, `flushed` returns true
    // once.
    void flush() {
        change([&] { flushing_ = true; });
    }

    bool flushed() {
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(flushed_, false);
    }

    std::vector<uint32_t> wanted() {
        std::lock_guard<std::mutex> lock(mutex_);
        return std::exchange(wanted_, {});
    }

    // Returns the state to write, and sets `replaces` to the files that it replaces. Returns each state once; null if
    // none is to be written.
    std::shared_ptr<Snapshot> leaving(std::vector<uint32_t> &replaces) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!leaving_ || std::exchange(taken_, true)) return nullptr;
        replaces = replaces_;
        return leaving_;
    }

    // Called by the engine thread.

    // Applies the event loop's reports to the cache, and releases the jobs whose file has arrived.
    void settle(PrefixCache &cache, const std::vector<Job *> &waiting) {
        std::vector<Delivery> delivered;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            for (uint32_t id : gone_) cache.drop_file(id);
            for (auto &file : kept_) cache.add_file(std::move(file));
            for (auto &file : outdated_) cache.outdated(file.sequence);
            for (auto &sequence : refused_) cache.no_file(std::move(sequence));
            refused_.clear();
            gone_.clear();
            kept_.clear();
            outdated_.clear();
            delivered = std::exchange(delivered_, {});
        }
        for (auto &each : delivered) {
            const Stored *file = cache.file(each.id);
            const auto asked =
                std::find_if(asked_.begin(), asked_.end(), [&](auto &a) { return a.first == each.id; });
            if (asked != asked_.end()) {
                if (each.data) cache.fetched(each.size, llama_time_us() - asked->second);
                asked_.erase(asked);
            }
            if (file && each.data && each.size == file->size && cache.reserve(each.size)) {
                cache.add(file->sequence, std::move(each.data), each.size);
            } else {
                cache.drop_file(each.id);
            }
            for (Job *job : waiting) {
                if (job->fetching == each.id) job->fetching = 0;
            }
        }
    }

    // Asks for a file. Does nothing if it was already asked for.
    void want(uint32_t id) {
        for (const auto &[asked, when] : asked_) {
            if (asked == id) return;
        }
        asked_.push_back({id, llama_time_us()});
        std::lock_guard<std::mutex> lock(mutex_);
        wanted_.push_back(id);
        exchange_.wake();
    }

    // From now on, offers every snapshot that the cache evicts from memory.
    void file_evicted(PrefixCache &cache) {
        cache.on_evict([this, &cache](std::shared_ptr<Snapshot> snapshot) { offer(snapshot, cache); });
    }

    // Whether `offer` accepts a state now.
    bool takes() {
        std::lock_guard<std::mutex> lock(mutex_);
        return open_ && !leaving_;
    }

    // Offers a state to be saved. Ignores it while another state is being written.
    void offer(const std::shared_ptr<Snapshot> &snapshot, const PrefixCache &cache) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!open_ || leaving_) return;
        leaving_ = snapshot;
        replaces_ = cache.replaced_by(snapshot->sequence);
        exchange_.wake();
    }

    // Offers a state that is in no file: the state of a slot, or a snapshot if every slot is saved. The loop calls this
    // while it is idle, and after `flush`.
    void file_one(llama_context *ctx, PrefixCache &cache) noexcept {
        if (!takes()) return;
        try {
            std::shared_ptr<Snapshot> snapshot = cache.unfiled_snapshot();
            const int slot = cache.unfiled_slot();
            if (ctx && slot >= 0) {
                const size_t size = llama_state_seq_get_size_ext(ctx, slot, 0);
                if (size > cache.budget()) {  // it could not be loaded again
                    cache.no_file(named(cache.held(slot)));
                    return exchange_.call();
                }
                State state = read_state(ctx, slot, size);
                if (state.first) snapshot.reset(new Snapshot{cache.held(slot), std::move(state.first), size});
            }
            if (snapshot) return offer(snapshot, cache);
        } catch (const std::bad_alloc &) {
            // Out of memory: the state is not saved.
        }
        std::lock_guard<std::mutex> lock(mutex_);
        if (std::exchange(flushing_, false)) {
            flushed_ = true;
            exchange_.wake();
        }
    }

    bool flushing() {
        std::lock_guard<std::mutex> lock(mutex_);
        return flushing_;
    }

  private:
    struct Delivery {
        uint32_t id;
        std::unique_ptr<uint8_t[]> data;
        size_t size;
    };

    template <typename F>
    void change(F &&f) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            f();
        }
        exchange_.call();
    }

    Exchange &exchange_;
    std::mutex mutex_;
    std::shared_ptr<Snapshot> leaving_;
    bool open_ = false, taken_ = false, flushing_ = false, flushed_ = false;
    std::vector<uint32_t> replaces_, wanted_, gone_;
    std::vector<Stored> kept_, outdated_;
    std::vector<Delivery> delivered_;
    std::vector<Sequence> refused_;
    // The mutex guards the fields above. Only the engine thread uses this one: the ids of the files that `want` asked
    // for, and the times when it did.
    std::vector<std::pair<uint32_t, int64_t>> asked_;
};

// Reads `size` bytes of a file from `offset` on. Returns null if the file is shorter or memory is short.
inline std::unique_ptr<uint8_t[]> read_file(int fd, size_t offset, size_t size) {
    std::unique_ptr<uint8_t[]> data(new (std::nothrow) uint8_t[size]);
    for (size_t at = 0; data && at < size;) {
        const ssize_t n = pread(fd, data.get() + at, size - at, static_cast<off_t>(offset + at));
        if (n <= 0) return nullptr;
        at += n;
    }
    return data;
}

// Writes a state to a file. Returns false if that fails, for example on a full disk.
inline bool write_file(int fd, const Snapshot &snapshot) {
    for (size_t at = 0; at < snapshot.size;) {
        const ssize_t n = write(fd, snapshot.data.get() + at, snapshot.size - at);
        if (n <= 0) return false;
        at += n;
    }
    return true;
}

}  // namespace inferd
