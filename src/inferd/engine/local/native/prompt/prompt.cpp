#include "prompt/prompt.h"

#include <algorithm>
#include <ctime>
#include <exception>
#include <stdexcept>

#include "guards/template_limits.h"
#include "guards/cancel.h"
#include "chat.h"
#include "common.h"
#include "guarded.h"
#include "jinja/bounds.h"
#include "json.h"
#include "log.h"
#include "prompt/template_check.h"
#include "prompt/tokenizer.h"
#include "prompt/whole_text.h"

namespace inferd {

namespace {

// The time that templates see as the present on this thread; 0: the time of the clock.
thread_local std::time_t present = 0;

// While a `FrozenTime` exists, templates on its thread see its time.
class FrozenTime {
  public:
    explicit FrozenTime(std::time_t time) { present = time; }
    ~FrozenTime() { present = 0; }
    FrozenTime(const FrozenTime &) = delete;
    FrozenTime &operator=(const FrozenTime &) = delete;
};

// A Unicode noncharacter that `text` does not contain, to mark positions in the text.
std::string unused_mark(const std::string &text) {
    for (unsigned char last = 0x90; last <= 0xAF; last++) {  // U+FDD0 to U+FDEF
        const std::string mark = {'\xEF', '\xB7', static_cast<char>(last)};
        if (text.find(mark) == std::string::npos) return mark;
    }
    throw std::runtime_error("the request uses every Unicode noncharacter from U+FDD0 to U+FDEF");
}

std::string without(const std::string &mark, std::string text) {
    for (size_t at = text.find(mark); at != std::string::npos; at = text.find(mark, at))
        text.erase(at, mark.size());
    return text;
}

// The FNV-1a hash of `text` between `from` and `to`. `hash` is the hash of the text before, if there is any.
uint64_t hash_of(const std::string &text, size_t from, size_t to, uint64_t hash = 1469598103934665603u) {
    for (; from < to; from++) hash = (hash ^ static_cast<unsigned char>(text[from])) * 1099511628211u;
    return hash;
}

// Applies the template. If the prompt lacks text of a message, tries again without the thinking of earlier turns, which
// some templates put in place of the text. If there is no user message, the second try also turns system messages into
// user messages. Throws if text is still missing.
template <typename Apply>
common_chat_params apply_whole(common_chat_templates_inputs &inputs, Apply apply) {
    common_chat_params params = apply();
    if (WholeText::missing(inputs.messages, params.prompt) < 0) return params;
    const bool has_user = std::any_of(inputs.messages.begin(), inputs.messages.end(),
                                      [](const common_chat_msg &message) { return message.role == "user"; });
    for (auto &message : inputs.messages) {
        message.reasoning_content.clear();
        if (!has_user && message.role == "system") message.role = "user";
    }
    params = apply();
    const int missing = WholeText::missing(inputs.messages, params.prompt);
    if (missing < 0) return params;
    throw std::runtime_error("the model's chat template leaves out the text of message " +
                             std::to_string(missing + 1) + " (" + inputs.messages[missing].role + ")");
}

bool is_word(const common_grammar_trigger &trigger) { return trigger.type == COMMON_GRAMMAR_TRIGGER_TYPE_WORD; }

// Takes the triggers of a lazy grammar. A word becomes a trigger token if it is a single token, else a regular
// expression.
void take_triggers(const llama_vocab *vocab, const common_chat_params &params, Rendered &out) {
    for (const auto &trigger : params.grammar_triggers) {
        const std::string &value = trigger.value;
        switch (trigger.type) {
        case COMMON_GRAMMAR_TRIGGER_TYPE_TOKEN:
            out.trigger_tokens.push_back(trigger.token);
            break;
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN:
            out.triggers.push_back(value);
            break;
        case COMMON_GRAMMAR_TRIGGER_TYPE_PATTERN_FULL:
            out.triggers.push_back("^(?:" + value + ")$");
            break;
        case COMMON_GRAMMAR_TRIGGER_TYPE_WORD: {
            out.trigger_words.push_back(value);
            const auto tokens = tokenize(vocab, value, false);
            if (tokens.size() == 1) {
                out.trigger_tokens.push_back(tokens[0]);
            } else {
                out.triggers.push_back(regex_escape(value));
            }
            break;
        }
        }
    }
    const auto &all = params.grammar_triggers;
    if (!std::all_of(all.begin(), all.end(), is_word)) out.trigger_words.clear();
}

}  // namespace

const std::time_t *template_time() {
    thread_local std::time_t now;
    now = present ? present : std::time(nullptr);
    return &now;
}

std::unique_ptr<Prompts> Prompts::make(const llama_model *model, const std::string &source,
                                       std::string &error) noexcept {
    std::unique_ptr<Prompts> prompts(new Prompts());
    const bool ok = guarded(error, [&] {
        prompts->vocab_ = llama_model_get_vocab(model);
        for (const char *name : {static_cast<const char *>(nullptr), "tool_use"}) {
            const char *own = llama_model_chat_template(model, name);
            const std::string chosen = own && source.empty() ? own : source;
            check_template_source(chosen);
            within_template_budget(0, [&] { return parse_template(chosen), true; });
        }
        auto made = within_template_budget(0, [&] { return common_chat_templates_init(model, source); });
        prompts->templates_ = {made.release(), common_chat_templates_free};
        prompts->nested_ = prompts->shows_nested_arguments();
        prompts->thinking_ = prompts->turns_thinking_off();
        prompts->analyse_for_tools();
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

bool Prompts::supports_tools() const noexcept { return supports("supports_tools"); }

bool Prompts::supports_calls() const noexcept { return supports("supports_tool_calls"); }

bool Prompts::supports_several_calls() const noexcept { return supports("supports_parallel_tool_calls"); }

bool Prompts::supports(const char *capability) const noexcept {
    try {
        const auto caps = common_chat_templates_get_caps(templates_.get());
        const auto found = caps.find(capability);
        return found != caps.end() && found->second;
    } catch (const std::exception &) {
        return false;
    }
}

bool Prompts::turns_thinking_off() const noexcept {
    try {
        return within_template_budget(
            0, [&] { return common_chat_templates_support_enable_thinking(templates_.get()); });
    } catch (const std::exception &) {
        return false;
    }
}

// Makes llama.cpp analyse the separate template for tools that some models have. `turns_thinking_off` has made it
// analyse the other template. Both happen before any request. If a request caused the analysis and its client
// disconnected meanwhile, the analysis would take the interrupted render for a refusal by the template, and all later
// requests would use the wrong result.
void Prompts::analyse_for_tools() const noexcept {
    try {
        common_chat_templates_inputs inputs;
        common_chat_msg asked;
        asked.role = "user";
        asked.content = "Hello";
        inputs.messages = {asked};
        inputs.tools = {{"name", "description", R"({"type": "object", "properties": {}})"}};
        within_template_budget(0, [&] { return common_chat_templates_apply(templates_.get(), inputs); });
    } catch (const std::exception &) {
        // a template that refuses this conversation may accept others
    }
}

// Renders a call with an object among its arguments, to see whether the prompt shows the object: llama.cpp's
// interpreter prints an object as an empty text. Also true for a template that shows no calls or refuses this
// conversation.
bool Prompts::shows_nested_arguments() const noexcept {
    try {
        common_chat_templates_inputs inputs;
        common_chat_msg asked, called;
        asked.role = "user";
        asked.content = "Hello";
        called.role = "assistant";
        called.tool_calls = {
            {"outer_name", R"({"flat": "flat_text", "nested": {"key": "nested_text"}})", "call00001"}};
        inputs.messages = {asked, called};
        inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
        inputs.force_pure_content = true;
        const std::string prompt =
            within_template_budget(0, [&] { return common_chat_templates_apply(templates_.get(), inputs).prompt; });
        return prompt.find("flat_text") == std::string::npos || prompt.find("nested_text") != std::string::npos;
    } catch (const std::exception &) {
        return true;
    }
}

// Puts `mark` after the first character of every text of a control token in `text`. The template renders as before. The
// prompt is split at the marks before it is tokenised, so no piece contains a whole control token that the template did
// not write. `text` is the request as JSON. JSON's escapes hide no control token, because no vocabulary has one with a
// quote or a backslash.
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

// The positions in the prompt where the first user message, the last user message and the last message begin. A message
// begins with the control token before its text. A message whose text is not found verbatim is left out.
std::vector<size_t> Prompts::turns(const std::vector<common_chat_msg> &messages, const std::string &prompt) const {
    constexpr size_t kLongestHead = 64;  // the most bytes from that control token to the text
    const auto is_user = [](const common_chat_msg &message) { return message.role == "user"; };
    const auto first = std::find_if(messages.begin(), messages.end(), is_user) - messages.begin();
    const auto last = messages.rend() - std::find_if(messages.rbegin(), messages.rend(), is_user) - 1;
    const auto end = static_cast<std::ptrdiff_t>(messages.size());
    std::vector<size_t> found;
    size_t before = prompt.size();
    for (auto i = end; i-- > std::min(first, end);) {
        const auto &parts = messages[i].content_parts;
        const std::string text = string_strip(parts.empty() ? messages[i].content : parts[0].text);
        const size_t at = text.empty() || before == 0 ? std::string::npos : prompt.rfind(text, before - 1);
        if (at == std::string::npos) continue;
        before = at;
        if (i != first && i != last && i != end - 1) continue;
        for (size_t head = at; head-- > 0 && at - head <= kLongestHead;) {
            if (!begins_with_control(prompt, head)) continue;
            found.insert(found.begin(), head);
            break;
        }
    }
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

// The longest text of a control token at the position `at`, or null.
const std::string *Prompts::control_at(const std::string &text, size_t at) const {
    const std::string *found = nullptr;
    for (const auto &control : control_[static_cast<unsigned char>(text[at])]) {
        if (found && found->size() >= control.size()) continue;
        if (text.compare(at, control.size(), control) == 0) found = &control;
    }
    return found;
}

// The position in the prompt where an earlier answer ends: the first control token after those that are part of the
// answer. 0 if the prompt shows other control tokens in the answer than the answer has.
size_t Prompts::end_of_turn(const std::string &prompt, const KeptAnswer &answer) const {
    std::vector<std::string> own;
    for (llama_token token : answer.tokens) {
        if (llama_vocab_is_control(vocab_, token)) own.push_back(llama_vocab_get_text(vocab_, token));
    }
    size_t seen = 0;
    for (size_t at = answer.at; at < prompt.size(); at++) {
        const std::string *control = control_at(prompt, at);
        if (!control) continue;
        if (seen == own.size()) return at;
        if (*control != own[seen++]) return 0;
        at += control->size() - 1;
    }
    return 0;
}

bool Prompts::render(const std::string &request, const MediaInput &media, const std::vector<KeptAnswer> &kept,
                     Rendered &out, std::string &error) const noexcept {
    return guarded(error, [&] {
        const std::string mark = unused_mark(request);
        const common_json plain = common_json::parse(request);
        const common_json marked = common_json::parse(disarm(request, mark));
        const bool thinking = plain.value("thinking", true);
        const FrozenTime frozen(plain.value("now", std::time_t(0)));

        common_chat_templates_inputs inputs;
        inputs.messages = common_chat_msgs_parse_oaicompat(marked.at("messages"));
        if (marked.contains("tools")) inputs.tools = common_chat_tools_parse_oaicompat(marked.at("tools"));
        inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;  // no grammar is made from the client's schemas here
        inputs.enable_thinking = thinking;
        inputs.reasoning_format = COMMON_REASONING_FORMAT_AUTO;
        inputs.force_pure_content = plain.value("text_only", false);

        const auto apply = [&] {
            return within_template_budget(request.size(),
                                          [&] { return common_chat_templates_apply(templates_.get(), inputs); });
        };
        common_chat_params params = apply_whole(inputs, apply);
        if (marked.contains("begun")) params.prompt += marked.at("begun").get<std::string>();
        const std::string &prompt = params.prompt;
        std::vector<Cut> cuts;
        for (size_t turn : turns(inputs.messages, prompt)) cuts.push_back({turn, turn});
        size_t hashed = 0;
        out.hash = hash_of(prompt, 0, 0);
        for (const auto &answer : kept) {
            if (answer.at < hashed || answer.at > prompt.size()) continue;
            out.hash = hash_of(prompt, hashed, answer.at, out.hash);
            hashed = answer.at;
            const size_t end = out.hash == answer.hash ? end_of_turn(prompt, answer) : 0;
            if (end > 0) cuts.push_back({answer.at, end, &answer.tokens});
        }
        out.length = prompt.size();
        out.hash = hash_of(prompt, hashed, prompt.size(), out.hash);
        std::sort(cuts.begin(), cuts.end(), [](const Cut &a, const Cut &b) { return a.at < b.at; });
        Tokenizer(vocab_, media, out).take(prompt, mark, cuts);
        if (plain.contains("form")) {
            const common_json &form = plain.at("form");
            common_chat_msg message;
            message.role = "user";
            message.content = "Hello";
            inputs.messages = {message};
            inputs.tools.clear();
            if (form.contains("tools")) inputs.tools = common_chat_tools_parse_oaicompat(form.at("tools"));
            if (form.contains("json_schema")) inputs.json_schema = form.at("json_schema").dump();
            inputs.tool_choice = common_chat_tool_choice_parse_oaicompat(form.value("tool_choice", "none"));
            inputs.parallel_tool_calls = supports("supports_parallel_tool_calls");
            params = apply();
        }
        out.stops = params.additional_stops;
        out.grammar = without(mark, params.grammar);
        out.lazy = params.grammar_lazy;
        take_triggers(vocab_, params, out);
        out.thinks = thinking;
        out.think_start = params.thinking_start_tag;
        out.think_ends = params.thinking_end_tags;
        out.prefill = tokenize(vocab_, params.generation_prompt, false);
        for (const auto &text : params.preserved_tokens) {
            const auto tokens = tokenize(vocab_, text, false);
            if (tokens.size() == 1) out.preserved.push_back(tokens[0]);
        }
        common_json syntax = common_json::object();
        syntax["format"] = static_cast<int>(params.format);
        syntax["parser"] = without(mark, params.parser);
        syntax["generation_prompt"] = params.generation_prompt;
        out.syntax = syntax.dump();
    });
}

bool Prompts::raw(const std::string &text, const std::string *suffix, Rendered &out,
                  std::string &error) const noexcept {
    return guarded(error, [&] {
        if (!suffix) {
            out.tokens = tokenize(vocab_, text, true);
            return;
        }
        const llama_token before = llama_vocab_fim_pre(vocab_), behind = llama_vocab_fim_suf(vocab_),
                          here = llama_vocab_fim_mid(vocab_);
        if (before < 0 || behind < 0 || here < 0) {
            throw std::runtime_error(
                "the model has no tokens for a text that is to be filled in: leave out the suffix");
        }
        const auto put = [&](llama_token token, const std::string &piece) {
            throw_if_cancelled();
            out.tokens.push_back(token);
            const auto tokens = common_tokenize(vocab_, piece, false, false);
            out.tokens.insert(out.tokens.end(), tokens.begin(), tokens.end());
        };
        if (llama_vocab_get_add_bos(vocab_)) out.tokens.push_back(llama_vocab_bos(vocab_));
        put(before, text);
        put(behind, *suffix);
        put(here, "");
    });
}

void silence_common() { common_log_set_verbosity_thold(-1); }

}  // namespace inferd
