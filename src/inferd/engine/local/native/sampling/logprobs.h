// The probabilities of an answer's tokens, as JSON records that travel beside its text.
//
// They are those of the model before anything is applied to them: no penalty, temperature, top-k, grammar or schema.
// A record is `{"token":TEXT,"logprob":X,"bytes":[...],"top_logprobs":[...]}`, the last a list of the likeliest tokens,
// best first, without lists of their own. Bytes that are no UTF-8 are U+FFFD in TEXT and as they are in `bytes`. A
// probability of 0 has the logarithm -9999.
#pragma once

#include <cstddef>
#include <deque>
#include <string>

#include "llama.h"

namespace inferd {

class Logprobs {
  public:
    // Records are wanted, each with `top` alternatives.
    void want(int top) { top_ = top; }
    bool wanted() const { return top_ >= 0; }

    // `token` was chosen by `logits`; `size` bytes of the answer come of it.
    void add(const llama_vocab *vocab, const float *logits, llama_token token, size_t size);

    // `size` more bytes of the answer are shown: appends to `out`, separated by commas, the records of the tokens whose
    // text has begun to be shown.
    void shown(size_t size, std::string &out);

    // The same for all that are left, at the end of the answer.
    void rest(std::string &out) { shown(made_ + 1, out); }

    // The text that was not shown never will be.
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
