// Parses answers with llama.cpp's library `common`, which knows each family's format of thinking and tool calls.
//
// Nothing here throws: a false return leaves the reason in `error`. A `Reply` is used by one thread at a time.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

struct common_chat_parser_params;

namespace inferd {

// An answer, parsed while it grows.
class Reply {
  public:
    // `syntax` comes from `Prompts::render`. With `places`, `feed` also reports the places of the text in the answer.
    static std::unique_ptr<Reply> make(const std::string &syntax, bool places, std::string &error) noexcept;
    ~Reply();

    // Takes more text of the answer; `last` means that the answer has ended. Sets `news` to a JSON object with the new
    // parts: `thinking` and `text` (strings to append), `tools` (whole calls: id, name, arguments as JSON text) and
    // `places` (of `text` in the answer: [begin, end) in bytes; text that the parser changed has no place). Returns
    // false if the answer does not fit the family's format.
    bool feed(const std::string &text, bool last, std::string &news, std::string &error) noexcept;

  private:
    Reply() = default;
    std::vector<std::array<size_t, 2>> places(const std::string &content, size_t from) const;

    bool wants_places_ = false;
    std::unique_ptr<common_chat_parser_params> params_;
    std::string text_;
    size_t shown_text_ = 0, shown_thinking_ = 0, shown_tools_ = 0;
};

}  // namespace inferd
