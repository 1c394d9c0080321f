// Ends a preparation whose client has disconnected.
//
// The preparation of a request (rendering, tokenising, compiling a grammar) runs in a pool thread, which cannot be
// stopped from outside. It polls the flag of its thread, and throws when the flag is set. Work that cannot poll is
// `Stoppable`: a cancel stops the work while a `Watch` for it exists.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>

namespace inferd {

class Stoppable {
  public:
    // Ends the work for good. Callable from any thread, also before or after the work.
    virtual void stop() noexcept = 0;

  protected:
    ~Stoppable() = default;
};

class CancelFlag {
  public:
    void cancel() {
        std::lock_guard<std::mutex> lock(mutex_);
        cancelled_.store(true, std::memory_order_relaxed);
        if (work_) work_->stop();
    }

    bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

    // Sets the work that a cancel stops, or none if null.
    void watch(Stoppable *work) {
        std::lock_guard<std::mutex> lock(mutex_);
        work_ = work;
        if (work_ && cancelled()) work_->stop();
    }

  private:
    std::mutex mutex_;
    std::atomic<bool> cancelled_{false};
    Stoppable *work_ = nullptr;
};

inline thread_local CancelFlag *cancel_flag = nullptr;  // null: this thread cannot be cancelled

inline void attach_cancel_flag(CancelFlag *flag) { cancel_flag = flag; }

inline bool is_cancelled() { return cancel_flag && cancel_flag->cancelled(); }

inline void throw_if_cancelled() {
    if (is_cancelled()) throw std::runtime_error("its client has left");
}

// While a `Watch` exists, a cancel of its thread's preparation stops `work`.
class Watch {
  public:
    explicit Watch(Stoppable &work) : flag_(cancel_flag) {
        if (flag_) flag_->watch(&work);
    }
    ~Watch() {
        if (flag_) flag_->watch(nullptr);
    }
    Watch(const Watch &) = delete;
    Watch &operator=(const Watch &) = delete;

  private:
    CancelFlag *const flag_;
};

// A mutex for work that takes seconds. A cancel ends the wait of its preparation for the mutex.
class CancellableMutex {
  public:
    void lock() {
        do {
            throw_if_cancelled();
        } while (!mutex_.try_lock_for(std::chrono::milliseconds(10)));
    }
    void unlock() { mutex_.unlock(); }

  private:
    std::timed_mutex mutex_;
};

}  // namespace inferd
