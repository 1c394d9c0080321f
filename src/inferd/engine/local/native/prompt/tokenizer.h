// Tokenises a rendered prompt, which has text, media, and earlier answers whose tokens are known.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "common.h"
#include "guards/cancel.h"
#include "prompt/prompt.h"

namespace inferd {

inline std::vector<llama_token> tokenize(const llama_vocab *vocab, const std::string &text, bool add_special) {
    return common_tokenize(vocab, text, add_special, true);
}

// A position in a prompt: the start of a turn, or an answer from `at` to `end` whose tokens are `instead`.
struct Cut {
    size_t at, end;
    const std::vector<llama_token> *instead = nullptr;
};

// Splits a prompt at every `mark` (see `Prompts::disarm`), tokenises each piece, and replaces media markers by media.
class Tokenizer {
  public:
    Tokenizer(const llama_vocab *vocab, const MediaInput &media, Rendered &out)
        : vocab_(vocab), media_(media), out_(out) {}

    // `cuts` are positions in the prompt, ascending.
    void take(const std::string &prompt, const std::string &mark, const std::vector<Cut> &cuts) {
        size_t from = 0;
        for (const Cut &cut : cuts) {
            if (cut.at < from) continue;
            add_parts(prompt.substr(from, cut.at - from), mark);
            parts_.push_back({"", kText, &cut});
            from = cut.end;
        }
        add_parts(prompt.substr(from), mark);
        check_media();
        for (const auto &part : parts_) {
            throw_if_cancelled();
            if (part.cut) {
                take_cut(*part.cut);
                continue;
            }
            if (part.item != kText) take_media(media_.items[part.item]);
            take_text(part.text);
        }
    }

  private:
    static constexpr size_t kText = static_cast<size_t>(-1);

    struct Part {
        std::string text;
        size_t item;  // the number of the image or sound before the text, or kText
        const Cut *cut = nullptr;
    };

    void take_cut(const Cut &cut) {
        if (!cut.instead) return out_.turns.push_back(out_.tokens.size());
        out_.tokens.insert(out_.tokens.end(), cut.instead->begin(), cut.instead->end());
    }

    void add_parts(const std::string &prompt, const std::string &mark) {
        cut(prompt, mark, [this](const std::string &piece, bool) {
            if (!media_.projector) return parts_.push_back({piece, kText});
            cut(piece, media_.projector->marker(), [this](const std::string &text, bool first) {
                first ? parts_.push_back({text, kText}) : add_place(text);
            });
        });
    }

    template <typename Take>
    static void cut(const std::string &text, const std::string &separator, Take take) {
        for (size_t from = 0, at; from != std::string::npos; from = at) {
            at = text.find(separator, from);
            take(text.substr(from, at - from), from == 0);
            if (at != std::string::npos) at += separator.size();
        }
    }

    // Takes the text after a media marker: the number of the image or sound, `>`, and text.
    void add_place(const std::string &text) {
        const size_t end = text.find_first_not_of("0123456789");
        if (end == 0 || end > kMostDigits || end == std::string::npos || text[end] != '>')
            throw std::runtime_error("the template changes the places of media");
        parts_.push_back({text.substr(end + 1), std::stoul(text.substr(0, end))});
    }

    // Before media are encoded, checks that the template shows each image or sound exactly once.
    void check_media() const {
        std::vector<int> places(media_.items.size());
        for (const auto &part : parts_) {
            if (part.item == kText) continue;
            if (part.item >= places.size() || places[part.item]++)
                throw std::runtime_error("the template repeats media");
        }
        if (std::count(places.begin(), places.end(), 0)) {
            throw std::runtime_error("the template leaves out some of the media");
        }
    }

    void take_text(const std::string &text) {
        if (text.empty() && !out_.tokens.empty()) return;
        const auto tokens = tokenize(vocab_, text, out_.tokens.empty());
        out_.tokens.insert(out_.tokens.end(), tokens.begin(), tokens.end());
    }

    void take_media(const MediaItem &item) {
        std::string error;
        if (!media_.projector->add(item, media_.n_batch, out_.tokens, out_.media, error)) {
            throw std::runtime_error(error);
        }
    }

    static constexpr size_t kMostDigits = 9;
    const llama_vocab *vocab_;
    const MediaInput &media_;
    Rendered &out_;
    std::vector<Part> parts_;
};

}  // namespace inferd
