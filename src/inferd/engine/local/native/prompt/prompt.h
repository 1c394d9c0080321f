// Renders prompts with llama.cpp's library `common`, which knows the templates and formats of the model families.
//
// Nothing here throws: a false return leaves the reason in `error`. Everything is thread-safe. Text of a client never
// becomes a control token: see `disarm` in prompt.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "media.h"

struct common_chat_msg;
struct common_chat_templates;

namespace inferd {

// The images and sounds of a request, numbered from 0.
struct MediaInput {
    const Projector *projector = nullptr;  // null: the model takes none
    int n_batch = 0;
    std::vector<MediaItem> items;
};

// An earlier answer: the length and hash of the prompt before it, and its tokens.
struct KeptAnswer {
    size_t at;
    uint64_t hash;
    std::vector<llama_token> tokens;
};

// A rendered request, and the data to constrain and parse its answer.
struct Rendered {
    size_t length = 0;  // the length and the hash of the text that was tokenised
    uint64_t hash = 0;
    std::vector<llama_token> tokens;
    std::vector<MediaSpan> media;  // the spans at kMediaToken
    std::vector<size_t> turns;     // indices of the tokens where the first and last user message and the last begin
    std::vector<std::string> stops;     // further stop strings of the model family
    std::string grammar;                // the GBNF of the family's format of calls or output, or empty
    bool lazy = false;                  // the grammar applies only after a trigger
    std::vector<std::string> triggers;  // regular expressions
    std::vector<llama_token> trigger_tokens;
    std::vector<std::string> trigger_words;  // the triggers as words, or empty if one of them is not a word
    bool thinks = false;                     // the template lets the model think first
    std::string think_start;                 // the marks at the start and the end of the family's thinking
    std::vector<std::string> think_ends;
    std::vector<llama_token> prefill;    // the part of the answer that is in the prompt; the grammar begins with it
    std::vector<llama_token> preserved;  // control tokens that the answer's parser needs as text
    std::string syntax;                  // the parser of the answer as JSON, for `Reply`
};

class Prompts {
  public:
    // The templates of `model`, or the Jinja template `source` if it is not empty. Null with `error` set if it does not
    // parse.
    static std::unique_ptr<Prompts> make(const llama_model *model, const std::string &source,
                                         std::string &error) noexcept;
    ~Prompts();

    // Renders `request`, a JSON object, up to the assistant's turn. Its keys:
    // - `messages`, `tools`: as in OpenAI's chat completions. The text of a content part of type `media_marker` is the
    //   projector's marker, the number of the image or sound, and `>`.
    // - `begun`: the beginning of the assistant's answer.
    // - `now`: the time that the template sees, in seconds since 1970; by default the clock's time.
    // - `thinking`: false asks the template to let the model answer at once.
    // - `text_only`: true if the answer will not be parsed. Then no parser is made, because that would take several
    //   times as long as the rest.
    // - `form`: what the answer may contain besides text and thinking; the parser and the grammar are made for it. An
    //   object with `tools`, `tool_choice` ("auto", "required") and `json_schema`. Its schemas may differ from those
    //   shown to the model.
    // `kept` are earlier answers in ascending order; their tokens replace their text in the prompt.
    bool render(const std::string &request, const MediaInput &media, const std::vector<KeptAnswer> &kept,
                Rendered &out, std::string &error) const noexcept;

    // Makes a prompt without a template. Without a `suffix`, names of control tokens in `text` become control tokens.
    // With a `suffix`, all text is plain text, and the model writes the text between `text` and `suffix`; the
    // vocabulary must have the control tokens for that.
    bool raw(const std::string &text, const std::string *suffix, Rendered &out, std::string &error) const noexcept;

    bool supports_thinking() const noexcept { return thinking_; }
    bool supports_tools() const noexcept;
    bool supports_calls() const noexcept;          // whether the template shows earlier calls
    bool supports_several_calls() const noexcept;  // whether the template shows several calls of one turn
    bool supports_nested_arguments() const noexcept {
        return nested_;
    }  // whether the template shows objects in the arguments of calls

  private:
    Prompts() = default;
    bool supports(const char *capability) const noexcept;
    bool shows_nested_arguments() const noexcept;
    bool turns_thinking_off() const noexcept;
    void analyse_for_tools() const noexcept;
    std::string disarm(const std::string &text, const std::string &mark) const;
    std::vector<size_t> turns(const std::vector<common_chat_msg> &messages, const std::string &prompt) const;
    bool begins_with_control(const std::string &text, size_t at) const { return control_at(text, at) != nullptr; }
    const std::string *control_at(const std::string &text, size_t at) const;
    size_t end_of_turn(const std::string &prompt, const KeptAnswer &answer) const;

    const llama_vocab *vocab_ = nullptr;
    std::unique_ptr<common_chat_templates, void (*)(common_chat_templates *)> templates_{nullptr, nullptr};
    std::vector<std::vector<std::string>> control_;  // the texts of control tokens, by their first byte
    bool nested_ = true, thinking_ = false;
};

// Turns off the log of `common`, which quotes prompts and answers.
void silence_common();

}  // namespace inferd
