#include "prompt.h"

#include <exception>

#include "chat.h"
#include "common.h"
#include "json-schema-to-grammar.h"
#include "json.h"

namespace inferd {

namespace {

// Calls `body`; turns what it throws into `error`.
template <typename Body>
bool guarded(std::string &error, Body body) noexcept {
    try {
        body();
        return true;
    } catch (const std::exception &e) {
        error = e.what();
    } catch (...) {
        error = "unknown C++ exception";
    }
    return false;
}

// A noncharacter that none of the messages contains: it can mark places in text without being mistaken for it.
std::string unused_mark(const std::vector<common_chat_msg> &messages) {
    for (unsigned char last = 0x90; last <= 0xAF; last++) {  // U+FDD0 to U+FDEF
        const std::string mark = {'\xEF', '\xB7', static_cast<char>(last)};
        bool used = false;
        for (const auto &message : messages) used = used || message.content.find(mark) != std::string::npos;
        if (!used) return mark;
    }
    throw std::runtime_error("the messages use every Unicode noncharacter from U+FDD0 to U+FDEF");
}

}  // namespace

std::unique_ptr<Prompts> Prompts::make(const llama_model *model, std::string &error) noexcept {
    std::unique_ptr<Prompts> prompts(new Prompts());
    const bool ok = guarded(error, [&] {
        prompts->vocab_ = llama_model_get_vocab(model);
        prompts->templates_ = {common_chat_templates_init(model, "").release(), common_chat_templates_free};
        prompts->control_.resize(256);
        const int32_t n_vocab = llama_vocab_n_tokens(prompts->vocab_);
        for (llama_token token = 0; token < n_vocab; token++) {
            const auto attributes = llama_vocab_get_attr(prompts->vocab_, token);
            if (!(attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN))) continue;
            const std::string text = llama_vocab_get_text(prompts->vocab_, token);
            if (text.size() > 1) prompts->control_[static_cast<unsigned char>(text[0])].push_back(text);
        }
    });
    return ok ? std::move(prompts) : nullptr;
}

Prompts::~Prompts() = default;

// Puts `mark` after the first character of everything in `text` that reads like a control token. The template
// then renders as it would, and `render` cuts the prompt at the marks before it tokenises it, so no piece
// holds a whole control token that the template itself did not write.
std::string Prompts::disarm(const std::string &text, const std::string &mark) const {
    std::string out;
    out.reserve(text.size());
    for (size_t at = 0; at < text.size(); at++) {
        out += text[at];
        for (const auto &control : control_[static_cast<unsigned char>(text[at])]) {
            if (text.compare(at, control.size(), control) == 0) {
                out += mark;
                break;
            }
        }
    }
    return out;
}

bool Prompts::render(const std::string &messages, std::vector<llama_token> &tokens,
                     std::vector<std::string> &stops, std::string &error) const noexcept {
    return guarded(error, [&] {
        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(common_json::parse(messages));
        inputs.enable_thinking = false;  // a text-only answer has no place to show it
        const std::string mark = unused_mark(inputs.messages);
        for (auto &message : inputs.messages) message.content = disarm(message.content, mark);

        const common_chat_params rendered = common_chat_templates_apply(templates_.get(), inputs);
        stops = rendered.additional_stops;
        tokens.clear();
        size_t from = 0;
        while (true) {
            const size_t cut = rendered.prompt.find(mark, from);
            const auto piece = common_tokenize(vocab_, rendered.prompt.substr(from, cut - from), from == 0, true);
            tokens.insert(tokens.end(), piece.begin(), piece.end());
            if (cut == std::string::npos) break;
            from = cut + mark.size();
        }
    });
}

bool schema_to_grammar(const std::string &schema, std::string &grammar, std::string &error) noexcept {
    return guarded(error, [&] { grammar = json_schema_to_grammar(common_json::parse(schema)); });
}

}  // namespace inferd
