// Prompts and grammars through llama.cpp's `common`, which knows every family's own template.
//
// Nothing here throws: a false return leaves the reason in `error`. Everything is safe to call from several
// threads at once. What a client wrote never becomes a control token: see `disarm` in prompt.cpp.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llama.h"

struct common_chat_templates;

namespace inferd {

class Prompts {
  public:
    // The templates of `model`; null with `error` set when its template cannot be parsed.
    static std::unique_ptr<Prompts> make(const llama_model *model, std::string &error) noexcept;
    ~Prompts();

    // Renders `messages` (a JSON array of {role, content}) up to the point where the assistant speaks, and
    // tokenises it. `stops` are further strings at which the family's turn ends.
    bool render(const std::string &messages, std::vector<llama_token> &tokens, std::vector<std::string> &stops,
                std::string &error) const noexcept;

  private:
    Prompts() = default;
    std::string disarm(const std::string &text, const std::string &mark) const;

    const llama_vocab *vocab_ = nullptr;
    std::unique_ptr<common_chat_templates, void (*)(common_chat_templates *)> templates_{nullptr, nullptr};
    std::vector<std::vector<std::string>> control_;  // control token texts by their first byte
};

// GBNF for a JSON Schema (as JSON text).
bool schema_to_grammar(const std::string &schema, std::string &grammar, std::string &error) noexcept;

}  // namespace inferd
