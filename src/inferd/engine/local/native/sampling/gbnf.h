// Checks a client's grammar (GBNF) before llama.cpp parses it. llama.cpp's parser recurses into parentheses, and copies
// a repeated item as many times as it may occur.
#pragma once

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace inferd {

class GbnfCheck {
  public:
    // Throws for a grammar that nests too deeply, grows too large, or repeats something "from 5 to 3 times".
    static void check(const std::string &grammar) { GbnfCheck(grammar).run(); }

  private:
    static constexpr int kMaxNesting = 256;
    static constexpr uint64_t kMaxExpanded = 200'000;  // elements of 8 bytes, after all repetitions
    static constexpr size_t kMaxDigits = 9;

    explicit GbnfCheck(const std::string &grammar) : text_(grammar) {}

    void run() {
        if (text_.find('\0') != std::string::npos) throw std::runtime_error("it contains a NUL character");
        int depth = 0;
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (c == '"' || c == '[') {
                item_ = skip_quoted(c == '"' ? '"' : ']');
            } else if (c == '#') {
                while (at_ < text_.size() && text_[at_] != '\n') at_++;
            } else if (c == '{') {
                repeat();
            } else {
                if (c == '(' && ++depth > kMaxNesting)
                    throw std::runtime_error("parentheses are nested too deeply");
                if (c == ')') depth--;
                if (!std::isspace(static_cast<unsigned char>(c))) item_ = 1;
                at_++;
            }
        }
    }

    // Skips a quoted text or a set in brackets, and returns the number of its elements.
    uint64_t skip_quoted(char closing) {
        uint64_t n = 0;
        for (at_++; at_ < text_.size() && text_[at_] != closing; at_++, n++) {
            if (text_[at_] == '\\') at_++;
        }
        at_++;
        return std::max<uint64_t>(n, 1);
    }

    void repeat() {
        at_++;
        const uint64_t least = number();
        uint64_t most = least;
        if (skip_spaces() == ',') {
            at_++;
            if (std::isdigit(static_cast<unsigned char>(skip_spaces()))) most = number();
        }
        if (most < least) {
            throw std::runtime_error("a repetition is to come at least " + std::to_string(least) + " and at most " +
                                     std::to_string(most) + " times");
        }
        expanded_ += item_ * most;
        if (expanded_ > kMaxExpanded) throw std::runtime_error("its repetitions make it too large");
    }

    char skip_spaces() {
        while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) at_++;
        return at_ < text_.size() ? text_[at_] : '\0';
    }

    uint64_t number() {
        skip_spaces();
        const size_t from = at_;
        while (at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_]))) at_++;
        if (at_ - from > kMaxDigits) throw std::runtime_error("its repetitions make it too large");
        return at_ == from ? 0 : std::stoull(text_.substr(from, at_ - from));
    }

    const std::string &text_;
    size_t at_ = 0;
    uint64_t item_ = 0;  // the number of elements of the last item, which a repetition repeats
    uint64_t expanded_ = 0;
};

}  // namespace inferd
