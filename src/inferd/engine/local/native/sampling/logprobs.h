// The probabilities of an answer's tokens, as JSON records that accompany its text.
//
// The probabilities are those of the model, before penalties, temperature, top-k, grammar or schema. A record is
// `{"token":TEXT,"logprob":X,"bytes":[...],"top_logprobs":[...]}`. `top_logprobs` lists the likeliest tokens, the
// likeliest first, as records without `top_logprobs`. Bytes that are not UTF-8 become U+FFFD in TEXT and stay unchanged
// in `bytes`. The logarithm of a probability of 0 is -9999.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "llama.h"

namespace inferd {

class Logprobs {
  public:
    // Asks for records, each with `top` alternatives.
    void want(int top) { top_ = top; }
    bool wanted() const { return top_ >= 0; }

    // Records that `token` was sampled from `logits` and adds `size` bytes to the answer.
    void add(const llama_vocab *vocab, const float *logits, llama_token token, size_t size);

    // Records that `size` more bytes of the answer were released. Appends to `out` the records of the tokens whose text
    // begins in these bytes, separated by commas.
    void shown(size_t size, std::string &out);

    // Appends all remaining records, at the end of the answer.
    void rest(std::string &out) { shown(made_ + 1, out); }

    // Drops the remaining records, because their text will not be released.
    void drop() { records_.clear(); }

  private:
    struct Record {
        size_t from;  // where the token's text begins in the answer
        std::string json;
    };

    int top_ = -1;
    size_t made_ = 0, shown_ = 0;  // bytes
    std::deque<Record> records_;
};

}  // namespace inferd
