// Drives an Exchange from both sides at once, for the thread sanitizer: `.ci/run --sanitize` builds and runs it.
//
// One thread is the engine, and the main thread is the event loop. The event loop submits, collects, cancels and drops
// jobs in an order drawn from a seed. The engine makes some frames for each job and finishes it. The exit status is 1
// if the two threads disagree about the result of a job.
#include "exchange.h"

#include <poll.h>

#include <cstdio>
#include <random>
#include <thread>

using namespace inferd;

namespace {

constexpr int kJobs = 2000;
constexpr size_t kSlots = 4, kFrames = 8;

void engine(Exchange &exchange) {
    std::vector<Job *> waiting, running, active, touched;
    bool idle = false;
    while (exchange.intake(waiting, running, active, kSlots, std::chrono::milliseconds(1), idle)) {
        touched.clear();
        for (auto *list : {&waiting, &running}) {
            for (Job *job : *list) {
                if (job->finish != Finish::running) touched.push_back(job);
            }
        }
        while (!waiting.empty() && running.size() < kSlots) {
            running.push_back(waiting.front());
            waiting.erase(waiting.begin());
        }
        if (exchange.begin_step(active.empty() ? nullptr : active[0])) {
            exchange.expect(1);
            for (Job *job : active) {
                if (job->finish != Finish::running || exchange.interrupted()) continue;
                job->staged = "frame\n";
                if (++job->n_past == kFrames) job->finish = Finish::end;
                touched.push_back(job);
            }
        }
        const auto ended = [](const Job *job) { return job->finish != Finish::running; };
        for (auto *list : {&waiting, &running}) {
            list->erase(std::remove_if(list->begin(), list->end(), ended), list->end());
        }
        exchange.publish(touched);
    }
}

// Whether both sides agree about every job.
bool round(unsigned seed) {
    Exchange exchange;
    std::thread thread([&] { engine(exchange); });
    std::mt19937 random(seed);
    std::unordered_map<uint64_t, size_t> bytes;
    size_t ended = 0, whole = 0, dropped = 0;
    bool right = true;
    for (int submitted = 0; submitted < kJobs || !bytes.empty();) {
        if (submitted < kJobs && bytes.size() < 3 * kSlots) {
            bytes[exchange.submit(std::make_unique<Job>())] = 0;
            submitted++;
        }
        if (random() % 8 == 0 && !bytes.empty()) {
            const uint64_t id = bytes.begin()->first;
            const bool drop = random() % 2 == 0;
            exchange.cancel(id, drop);
            if (drop) {
                bytes.erase(id);
                dropped++;
            }
        }
        if (random() % 64 == 0) exchange.call();
        pollfd wake = {exchange.fd(), POLLIN, 0};
        if (submitted == kJobs || bytes.size() >= 3 * kSlots) poll(&wake, 1, 10);
        uint64_t steps = 0;
        int64_t busy = 0, predicted = 0;
        exchange.pulse(steps, busy, predicted);
        for (uint64_t id : exchange.ready()) {
            if (random() % 4 == 0) std::this_thread::yield();  // lets the engine thread run in between
            std::string out;
            const auto job = exchange.collect(id, out);
            const auto found = bytes.find(id);
            if (found == bytes.end()) continue;
            found->second += out.size();
            if (!job) continue;
            right = right && (job->finish == Finish::cancelled || found->second == kFrames * 6);
            whole += job->finish == Finish::end;
            ended++;
            bytes.erase(found);
        }
    }
    exchange.stop();
    thread.join();
    std::printf("%zu jobs ended, %zu of them whole; %zu dropped\n", ended, whole, dropped);
    return right && whole > 0 && dropped > 0 && ended + dropped == kJobs;
}

}  // namespace

int main() {
    bool right = true;
    for (unsigned seed = 0; seed < 10; seed++) right = round(seed) && right;
    return right ? 0 : 1;
}
