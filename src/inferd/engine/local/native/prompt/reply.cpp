#include "prompt/reply.h"

#include "chat.h"
#include "guarded.h"
#include "json.h"

namespace inferd {

std::unique_ptr<Reply> Reply::make(const std::string &syntax, std::string &error) noexcept {
    std::unique_ptr<Reply> reply(new Reply());
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
        // Text already sent stays, even if the longer answer parses differently.
        auto show = [&out](const char *key, const std::string &whole, size_t &shown) {
            if (whole.size() > shown) {
                out[key] = whole.substr(shown);
                shown = whole.size();
            }
        };
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

}  // namespace inferd
