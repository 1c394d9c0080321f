// Top-p sampling without sorting the vocabulary.
//
// The result is the same set as that of llama.cpp's top-p: the likeliest tokens, up to and including the one with which
// their sum reaches `p`. The sets may differ if a sum equals `p` within the rounding of a float. Nearly all tokens are
// ruled out by one comparison each: all tokens below a certain logit together have less than 1 - `p`. Throws only when
// out of memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "llama.h"

namespace inferd {

// Rows of numbers are read in blocks of this size. Compilers turn the loop over a block into vector instructions.
constexpr int kBlock = 64;

// Calls `take(id)` for every id of `first` ≤ id < `n` whose logit is above `bar`, which `take` may raise.
template <typename Take>
void above(const float *logits, llama_token first, llama_token n, const float &bar, Take take) {
    llama_token id = first;
    for (; id + kBlock <= n; id += kBlock) {
        unsigned any = 0;
        for (int i = 0; i < kBlock; i++) any |= logits[id + i] > bar;
        if (!any) continue;
        for (int i = 0; i < kBlock; i++) {
            if (logits[id + i] > bar) take(id + i);
        }
    }
    for (; id < n; id++) {
        if (logits[id] > bar) take(id);
    }
}

inline float greatest(const float *values, int32_t n) {
    float lanes[kBlock];
    std::fill_n(lanes, kBlock, -INFINITY);
    int32_t at = 0;
    for (; at + kBlock <= n; at += kBlock) {
        for (int i = 0; i < kBlock; i++) lanes[i] = values[at + i] > lanes[i] ? values[at + i] : lanes[i];
    }
    float found = *std::max_element(lanes, lanes + kBlock);
    for (; at < n; at++) found = std::max(found, values[at]);
    return found;
}

// e^(value - top) for each value of a block, with a relative error of 2e-7. No value may be above `top`. The loops have
// no call and no branch, so that compilers vectorise them.
inline void exp_block(const float *values, float top, float *out) {
    float rest[kBlock], power[kBlock];
    int32_t twos[kBlock];
    for (int i = 0; i < kBlock; i++) {
        const float x = values[i] - top > -87.0f ? values[i] - top : -87.0f;
        twos[i] = static_cast<int32_t>(x * 1.44269504f - 0.5f);  // the nearest power of two
        const float n = static_cast<float>(twos[i]);
        rest[i] = x - n * 0.693359375f - n * -2.12194440e-4f;  // ln 2 in two parts
        twos[i] = (twos[i] + 127) * (1 << 23);
    }
    static_assert(sizeof power == sizeof twos);
    std::memcpy(power, twos, sizeof power);
    for (int i = 0; i < kBlock; i++) {
        const float r = rest[i];
        float p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        out[i] = (p * r * r + r + 1.0f) * power[i];
    }
}

// The sum of e^(value - top) over all values.
inline double sum_of_exp(const float *values, int32_t n, float top) {
    double sum = 0;
    for (int32_t at = 0; at + kBlock <= n;) {
        float lanes[kBlock] = {}, powers[kBlock];
        // Each lane adds at most 64 numbers, so few that the rounding of a float does not matter.
        for (int turn = 0; turn < 64 && at + kBlock <= n; turn++, at += kBlock) {
            exp_block(values + at, top, powers);
            for (int i = 0; i < kBlock; i++) lanes[i] += powers[i];
        }
        for (float lane : lanes) sum += lane;
    }
    for (int32_t at = n / kBlock * kBlock; at < n; at++) sum += std::exp(values[at] - top);
    return sum;
}

// Moves the likeliest candidates whose `p` add up to `mass` to the front, in no order, and returns their number.
inline size_t heaviest(std::vector<llama_token_data> &candidates, double mass) {
    const auto better = [](const llama_token_data &a, const llama_token_data &b) {
        return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
    };
    size_t first = 0, last = candidates.size();  // the set ends between `first` and `last`
    while (last - first > 64) {
        const size_t middle = first + (last - first) / 2;
        std::nth_element(candidates.begin() + first, candidates.begin() + middle, candidates.begin() + last,
                         better);
        double half = 0;
        for (size_t i = first; i < middle; i++) half += candidates[i].p;
        if (half >= mass) {
            last = middle;
        } else {
            mass -= half;
            first = middle;
        }
    }
    std::sort(candidates.begin() + first, candidates.begin() + last, better);
    while (first < last && mass > 0) mass -= candidates[first++].p;
    return first;
}

// The nucleus of probability `p` < 1 of `n` logits, in no order; empty when no logit is a number.
inline void nucleus(const float *logits, int32_t n, float p, std::vector<llama_token_data> &out) {
    out.clear();
    const float top = greatest(logits, n);
    if (!std::isfinite(top)) return;
    const double sum = sum_of_exp(logits, n, top);
    // All tokens below this bar together have less than 1 - `p`, so the set ends above it, mostly far above.
    const double rest = std::max(0.0, 1.0 - p) * sum / n;
    const float lowest = rest > 0 ? top - 1e-3f + std::min(0.0f, static_cast<float>(std::log(rest))) : -INFINITY;
    double mass = 0;
    for (float below = 4, bar = top; bar > lowest && mass < p * sum; below *= 1.5f) {
        bar = std::max(lowest, top - below);
        mass = 0;
        out.clear();
        above(logits, 0, n, bar, [&](llama_token id) {
            out.push_back({id, logits[id], std::exp(logits[id] - top)});
            mass += out.back().p;
        });
    }
    out.resize(std::max<size_t>(1, heaviest(out, p * sum)));
}

}  // namespace inferd
