// The probabilities of an answer's tokens, as JSON records that accompany its text.
//
// They are the model's own, before penalties, temperature, top-k, grammar or schema. A record is
// `{"token":TEXT,"logprob":X,"bytes":[...],"top_logprobs":[...]}`. `top_logprobs` lists the likeliest tokens, best
// first, as records without that list. Bytes that are not UTF-8 become U+FFFD in TEXT and stay unchanged in `bytes`. A
// probability of 0 has the logarithm -9999.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "llama.h"

namespace inferd {

class Logprobs {
  public:
    // Asks for records with `top` alternatives each.
    void want(int top) { top_ = top; }
    bool wanted() const { return top_ >= 0; }

    // `token` was sampled from `logits` and adds `size` bytes to the answer.
    void add(const llama_vocab *vocab, const float *logits, llama_token token, size_t size);

    // `size` more bytes of the answer were released: appends to `out` the records of the tokens whose text has begun,
    // separated by commas.
    void shown(size_t size, std::string &out);

    // Appends all remaining records, at the end of the answer.
    void rest(std::string &out) { shown(made_ + 1, out); }

    // Drops the records of text that is never released.
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
