// Turns token pieces into text for the client.
//
// Pieces are arbitrary bytes: tokens can split a character or a stop string. `TextStream` releases only whole UTF-8
// characters that cannot begin a stop string. It drops bytes that can never become a character.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace inferd {

// The length of the character at `s` (1-4), 0 if it is incomplete, or -1 if it is not UTF-8.
inline int utf8_length(const unsigned char *s, size_t available) noexcept {
    const unsigned char lead = s[0];
    if (lead < 0x80) return 1;
    int length;
    unsigned char low = 0x80, high = 0xBF;  // bounds of the second byte: no overlong form, no surrogate
    if (lead >= 0xC2 && lead <= 0xDF) {
        length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
        length = 3;
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
        length = 4;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    } else {
        return -1;
    }
    for (int i = 1; i < length; i++) {
        if (static_cast<size_t>(i) >= available) return 0;
        if (s[i] < low || s[i] > high) return -1;
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

class TextStream {
  public:
    void set_stops(const std::vector<std::string> &stops) {
        stops_ = stops;
        longest_ = 0;
        for (const auto &stop : stops_) longest_ = std::max(longest_, stop.size());
    }

    // Takes the bytes of one token, and appends the text that can be released to `out`. Returns true if a stop string
    // is complete. Then `out` ends before the stop string, and the caller must not push more.
    bool push(const char *bytes, size_t n, std::string &out) {
        unfinished_.append(bytes, n);
        const size_t known = held_.size();
        take_whole_characters();
        if (stops_.empty()) {
            out += held_;
            held_.clear();
            return false;
        }
        const size_t from = known >= longest_ ? known - longest_ + 1 : 0;
        size_t first = std::string::npos;
        for (const auto &stop : stops_) first = std::min(first, held_.find(stop, from));
        if (first != std::string::npos) {
            out.append(held_, 0, first);
            held_.clear();
            return true;
        }
        const size_t shown = held_.size() - possible_stop();
        out.append(held_, 0, shown);
        held_.erase(0, shown);
        return false;
    }

    // Ends the answer: appends the text that was held back because it might have begun a stop string.
    void finish(std::string &out) {
        out += held_;
        held_.clear();
        unfinished_.clear();
    }

  private:
    void take_whole_characters() {
        size_t at = 0;
        while (at < unfinished_.size()) {
            const auto *s = reinterpret_cast<const unsigned char *>(unfinished_.data()) + at;
            const int length = utf8_length(s, unfinished_.size() - at);
            if (length == 0) break;
            if (length > 0) held_.append(unfinished_, at, length);
            at += length > 0 ? length : 1;
        }
        unfinished_.erase(0, at);
    }

    // The length of the longest suffix of `held_` that could begin a stop string.
    size_t possible_stop() const {
        size_t best = 0;
        for (const auto &stop : stops_) {
            for (size_t n = std::min(stop.size() - 1, held_.size()); n > best; n--) {
                if (std::string_view(held_).substr(held_.size() - n) == std::string_view(stop).substr(0, n)) {
                    best = n;
                    break;
                }
            }
        }
        return best;
    }

    std::vector<std::string> stops_;
    size_t longest_ = 0;
    std::string unfinished_;  // the beginning of a character
    std::string held_;        // whole characters that may be the beginning of a stop string
};

}  // namespace inferd
