#include "prompt/reply.h"

#include <algorithm>

#include "chat-peg-parser.h"
#include "chat.h"
#include "guarded.h"
#include "json.h"

namespace inferd {

std::unique_ptr<Reply> Reply::make(const std::string &syntax, bool places, std::string &error) noexcept {
    std::unique_ptr<Reply> reply(new Reply());
    reply->wants_places_ = places;
    const bool ok = guarded(error, [&] {
        const common_json parsed = common_json::parse(syntax);
        auto params = std::make_unique<common_chat_parser_params>();
        params->format = static_cast<common_chat_format>(parsed.at("format").get<int>());
        params->generation_prompt = parsed.at("generation_prompt").get<std::string>();
        params->reasoning_format = COMMON_REASONING_FORMAT_AUTO;
        const auto parser = parsed.at("parser").get<std::string>();
        if (!parser.empty()) params->parser.load(parser);
        reply->params_ = std::move(params);
    });
    return ok ? std::move(reply) : nullptr;
}

Reply::~Reply() = default;

bool Reply::feed(const std::string &text, bool last, std::string &news, std::string &error) noexcept {
    return guarded(error, [&] {
        text_ += text;
        const common_chat_msg message = common_chat_parse(text_, !last, *params_);
        common_json out = common_json::object();
        // Text that was already returned stays, even if the longer answer parses differently.
        auto show = [&out](const char *key, const std::string &whole, size_t &shown) {
            if (whole.size() > shown) {
                out[key] = whole.substr(shown);
                shown = whole.size();
            }
        };
        if (wants_places_) {
            common_json found = common_json::array();
            for (const auto &[begin, end] : places(message.content, shown_text_)) {
                found.push_back(std::vector<size_t>{begin, end});
            }
            out["places"] = found;
        }
        show("thinking", message.reasoning_content, shown_thinking_);
        show("text", message.content, shown_text_);
        // The last call may still grow until the answer has ended.
        const size_t whole = message.tool_calls.size() - (last || message.tool_calls.empty() ? 0 : 1);
        common_json tools = common_json::array();
        for (; shown_tools_ < whole; shown_tools_++) {
            const auto &call = message.tool_calls[shown_tools_];
            tools.push_back({{"id", call.id}, {"name", call.name}, {"arguments", call.arguments}});
        }
        if (!tools.empty()) out["tools"] = tools;
        news = out.dump_safe();
    });
}

// The places in the answer of the bytes of `content` from `from` on. `common_chat_parse` does not report places, so
// this parses the answer again.
std::vector<std::array<size_t, 2>> Reply::places(const std::string &content, size_t from) const {
    if (from >= content.size()) return {};
    if (params_->parser.empty()) return {{from, content.size()}};
    const size_t before = params_->generation_prompt.size();
    const std::string whole = params_->generation_prompt + text_;
    common_peg_parse_context context(whole, COMMON_PEG_PARSE_FLAG_LENIENT);
    const common_peg_parse_result result = params_->parser.parse(context);
    std::vector<std::array<size_t, 2>> found;
    size_t at = 0;
    context.ast.visit(result, [&](const common_peg_ast_node &node) {
        if (node.tag != common_chat_peg_builder::CONTENT) return;
        const size_t size = node.text.size();
        const bool same = content.compare(at, size, node.text) == 0;
        const size_t begin = std::max(node.start + (from > at ? from - at : 0), before);
        if (same && begin < node.start + size) found.push_back({begin - before, node.start + size - before});
        at = std::min(at + size, content.size());
    });
    return found;
}

}  // namespace inferd
