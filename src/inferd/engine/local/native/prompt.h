// Prompts, and the parsing of answers through llama.cpp's `common`, which knows every family's own
// template and formats.
//
// Nothing here throws: a false return leaves the reason in `error`. Everything but a `Reply` is safe to call
// from several threads at once. What a client wrote never becomes a control token: see `disarm` in prompt.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "media.h"

struct common_chat_msg;
struct common_chat_templates;
struct common_chat_parser_params;

namespace inferd {

// The images and sounds of a request, numbered from 0.
struct MediaInput {
    const Projector *projector = nullptr;  // null: the model takes none
    int n_batch = 0;
    std::vector<MediaItem> items;
};

// An earlier answer: the prompt before it, as the length and the hash of its text, and its tokens.
struct KeptAnswer {
    size_t at;
    uint64_t hash;
    std::vector<llama_token> tokens;
};

// A request as the model gets it, and what is needed to follow its answer.
struct Rendered {
    size_t length = 0;  // of the text that was tokenised, and its hash
    uint64_t hash = 0;
    std::vector<llama_token> tokens;
    std::vector<MediaSpan> media;       // where `tokens` holds kMediaToken
    std::vector<size_t> turns;          // where the first and the last user message and the last message begin
    std::vector<std::string> stops;     // further strings at which the family's turn ends
    std::string grammar;                // of the family's tool or output format, or empty
    bool lazy = false;                  // the grammar holds only from a trigger on
    std::vector<std::string> triggers;  // patterns
    std::vector<llama_token> trigger_tokens;
    std::vector<std::string> trigger_words;  // the same where all of them are words; else empty
    bool thinks = false;                     // the model was asked to think first, or not asked not to
    std::string think_start;                 // how the family's thoughts begin, and how they end
    std::vector<std::string> think_ends;
    std::vector<llama_token> prefill;    // what of the answer already stands in the prompt, for the grammar
    std::vector<llama_token> preserved;  // control tokens that the answer's parser needs to see
    std::string syntax;                  // how to parse the answer, for `Reply`
};

class Prompts {
  public:
    // The templates of `model`, or `source` as a Jinja template if it is not empty; null with `error` set when
    // it cannot be parsed.
    static std::unique_ptr<Prompts> make(const llama_model *model, const std::string &source,
                                         std::string &error) noexcept;
    ~Prompts();

    // Renders `request`, a JSON object, up to the point where the assistant speaks. Its keys: `messages` and
    // `tools` as in OpenAI's chat completions, `begun`: text with which the assistant has begun its answer, and `thinking`: false asks the template to let the model answer at
    // once. `text_only`: true says that the answer will not be parsed, which saves finding out how, several times
    // the cost of the rest. `form` says for what the answer's parser and grammar are made, if not for text and
    // thoughts alone: an object with `tools`, `tool_choice` ("auto", "required") and `json_schema`. Its schemas need
    // not be those that the model is shown. A content part of type `media_marker` has as its text the projector's
    // marker, the number of the medium and `>`.
    // Where one of the `kept` answers stands in the prompt, ascending by place, its tokens take the place of its text.
    bool render(const std::string &request, const MediaInput &media, const std::vector<KeptAnswer> &kept,
                Rendered &out, std::string &error) const noexcept;

    // A prompt without a template: `text` as it stands, control tokens included; or, with a `suffix`, what the model
    // is to fill in between the two, by the control tokens that its vocabulary has for that.
    bool raw(const std::string &text, const std::string *suffix, Rendered &out, std::string &error) const noexcept;

    bool supports_thinking() const noexcept;
    bool supports_tools() const noexcept;
    bool supports_calls() const noexcept;          // whether earlier calls are shown
    bool supports_several_calls() const noexcept;  // whether several of one turn are

  private:
    Prompts() = default;
    bool supports(const char *capability) const noexcept;
    std::string disarm(const std::string &text, const std::string &mark) const;
    std::vector<size_t> turns(const std::vector<common_chat_msg> &messages, const std::string &prompt) const;
    bool begins_with_control(const std::string &text, size_t at) const { return control_at(text, at) != nullptr; }
    const std::string *control_at(const std::string &text, size_t at) const;
    size_t end_of_turn(const std::string &prompt, const KeptAnswer &answer) const;

    const llama_vocab *vocab_ = nullptr;
    std::unique_ptr<common_chat_templates, void (*)(common_chat_templates *)> templates_{nullptr, nullptr};
    std::vector<std::vector<std::string>> control_;  // control token texts by their first byte
};

// An answer, parsed while it grows.
class Reply {
  public:
    // `syntax` is what `render` gave.
    static std::unique_ptr<Reply> make(const std::string &syntax, std::string &error) noexcept;
    ~Reply();

    // Takes more text of the answer, `last` with the end of it; `news` becomes a JSON object of what is new:
    // `thinking` and `text` (strings to append), `tools` (whole calls: id, name, arguments as JSON text).
    // False: the answer as a whole does not fit the family's format.
    bool feed(const std::string &text, bool last, std::string &news, std::string &error) noexcept;

  private:
    Reply() = default;

    std::unique_ptr<common_chat_parser_params> params_;
    std::string text_;
    size_t shown_text_ = 0, shown_thinking_ = 0, shown_tools_ = 0;
};

// `common` has a log of its own, which quotes prompts and answers: turns it off.
void silence_common();

}  // namespace inferd
