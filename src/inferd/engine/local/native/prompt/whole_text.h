// Checks that a prompt contains all text of a conversation: some chat templates omit parts that they do not support.
#pragma once

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include "chat.h"

namespace inferd {

class WholeText {
  public:
    // The index of the first message whose text is not in `prompt`, ignoring whitespace; -1 if every text is.
    static int missing(const std::vector<common_chat_msg> &messages, const std::string &prompt) {
        for (size_t i = 0; i < messages.size(); i++) {
            const auto &message = messages[i];
            if (!holds(prompt, message, message.content)) return static_cast<int>(i);
            for (const auto &part : message.content_parts) {
                if (part.type == "text" && !holds(prompt, message, part.text)) return static_cast<int>(i);
            }
        }
        return -1;
    }

  private:
    static constexpr size_t kGap = 16;  // the most bytes of blanks and escapes between two words
    static constexpr int kTries = 200;  // how many occurrences of the first word are tried

    static bool holds(const std::string &prompt, const common_chat_msg &message, const std::string &text) {
        // A template may leave out the thinking in an answer, and may format a JSON result differently.
        if (message.role == "assistant" && text.find("</think>") != std::string::npos) return true;
        const size_t first = text.find_first_not_of(" \t\r\n");
        if (first == std::string::npos || prompt.find(text) != std::string::npos) return true;
        if (message.role == "tool" && (text[first] == '{' || text[first] == '[')) return true;
        const auto all = words(text);
        const std::string first_word = all[0], first_escaped = escaped(first_word);
        size_t at = 0;
        for (int tries = 0; tries < kTries; tries++, at++) {
            at = std::min(prompt.find(first_word, at), prompt.find(first_escaped, at));
            if (at == std::string::npos) return false;
            if (follow_each_other(prompt, all, at)) return true;
        }
        return true;  // undecided within a reasonable time
    }

    // Whether the words follow each other from `at` on, at most kGap bytes apart.
    static bool follow_each_other(const std::string &prompt, const std::vector<std::string> &all, size_t at) {
        for (const auto &word : all) {
            const size_t from = at;
            at = prompt.find(word, from);
            if (at == std::string::npos || at - from > kGap) at = prompt.find(escaped(word), from);
            if (at == std::string::npos || at - from > kGap) return false;
            at += word.size();
        }
        return true;
    }

    static std::vector<std::string> words(const std::string &text) {
        std::vector<std::string> found(1);
        for (const char c : text) {
            if (!std::isspace(static_cast<unsigned char>(c))) {
                found.back() += c;
            } else if (!found.back().empty()) {
                found.emplace_back();
            }
        }
        if (found.back().empty()) found.pop_back();
        return found;
    }

    // A word as JSON escapes it.
    static std::string escaped(const std::string &word) {
        std::string out;
        for (const char c : word) {
            if (c == '"' || c == '\\') out += '\\';
            out += c;
        }
        return out;
    }
};

}  // namespace inferd
