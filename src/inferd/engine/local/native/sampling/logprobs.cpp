#include "sampling/logprobs.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "common.h"
#include "json.h"
#include "sampling/nucleus.h"

namespace inferd {

namespace {

constexpr double kNever = -9999;

struct Choice {
    llama_token token;
    float logit;
};

// The `most` likeliest tokens, the likeliest first. Equally likely tokens are in the order of the vocabulary.
std::vector<Choice> likeliest(const float *logits, int32_t n_vocab, size_t most) {
    std::vector<Choice> best;
    const auto less = [](float logit, const Choice &other) { return logit > other.logit; };
    const auto insert = [&](llama_token token) {
        best.insert(std::upper_bound(best.begin(), best.end(), logits[token], less), {token, logits[token]});
    };
    const llama_token first = std::min<int64_t>(most, n_vocab);
    for (llama_token token = 0; token < first; token++) insert(token);
    if (first == 0) return best;
    float bar = best.back().logit;
    above(logits, first, n_vocab, bar, [&](llama_token token) {
        best.pop_back();
        insert(token);
        bar = best.back().logit;
    });
    return best;
}

// The logarithm of the sum of e^logit. A logit minus this number is the log-probability of its token.
double normaliser(const float *logits, int32_t n_vocab) {
    const float top = greatest(logits, n_vocab);
    return top + std::log(sum_of_exp(logits, n_vocab, top));
}

// The record of a token, without its closing brace.
std::string opened(const llama_vocab *vocab, llama_token token, double logprob) {
    const std::string text = common_token_to_piece(vocab, token, true);
    char number[32];
    std::snprintf(number, sizeof number, "%.6g", std::isfinite(logprob) ? std::min(logprob, 0.0) : kNever);
    std::string out = "{\"token\":" + common_json(text).dump_safe() + ",\"logprob\":" + number + ",\"bytes\":[";
    for (size_t i = 0; i < text.size(); i++) {
        if (i) out += ',';
        out += std::to_string(static_cast<unsigned char>(text[i]));
    }
    return out + ']';
}

void append(const std::string &record, std::string &out) {
    if (!out.empty()) out += ',';
    out += record;
}

}  // namespace

void Logprobs::add(const llama_vocab *vocab, const float *logits, llama_token token, size_t size) {
    const int32_t n_vocab = llama_vocab_n_tokens(vocab);
    const double one = normaliser(logits, n_vocab);
    std::string others;
    for (const Choice &choice : likeliest(logits, n_vocab, top_)) {
        append(opened(vocab, choice.token, choice.logit - one) + '}', others);
    }
    records_.push_back({made_, opened(vocab, token, logits[token] - one) + ",\"top_logprobs\":[" + others + "]}"});
    made_ += size;
}

void Logprobs::shown(size_t size, std::string &out) {
    shown_ += size;
    while (!records_.empty() && records_.front().from < shown_) {
        append(records_.front().json, out);
        records_.pop_front();
    }
}

}  // namespace inferd
