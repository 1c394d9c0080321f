#include "prompt/template_check.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "common.h"
#include "jinja/lexer.h"
#include "jinja/parser.h"

namespace inferd {

namespace {

std::string parse_error(const std::vector<jinja::token> &tokens, const std::string &source) {
    try {
        jinja::parse_from_tokens({tokens, source});
        return "";
    } catch (const std::runtime_error &e) {
        return e.what();
    }
}

std::string at_place(const std::string &reason, const std::string &source, size_t place) {
    const auto line = std::count(source.begin(), source.begin() + place, '\n') + 1;
    const size_t before = place ? source.rfind('\n', place - 1) : std::string::npos;
    const size_t column = before == std::string::npos ? place + 1 : place - before;
    return reason + " at line " + std::to_string(line) + ", column " + std::to_string(column);
}

// The first line of an error of the lexer or parser. The lines below it quote the source without a line number.
std::string reason_of(std::string what) {
    what.resize(std::min(what.find('\n'), what.size()));
    for (const std::string prefix : {"lexer: ", "parser: ", "Parser Error: "}) {
        if (what.rfind(prefix, 0) == 0) what.erase(0, prefix.size());
    }
    return what.substr(0, what.find(" of type "));
}

// The reason of a lexer error, with the text before it. The lexer quotes the source between `...`, with `↵` for a
// newline, and puts a `^` under the position.
std::string lexer_error(const std::string &what) {
    const size_t first = what.find('\n'), second = what.find('\n', first + 1);
    if (second == std::string::npos) return reason_of(what);
    std::string before = what.substr(first + 1, second - first - 1);
    string_replace_all(before, "↵", "\n");
    if (before.size() < 6 || what.size() < second + 5) return reason_of(what);
    before = before.substr(3, std::min(what.size() - second - 5, before.size() - 6));
    before.erase(0, before.rfind('\n') + 1);
    while (!before.empty() && (before[0] & 0xC0) == 0x80) before.erase(0, 1);
    return reason_of(what) + " after `" + before + "`";
}

}  // namespace

void parse_template(const std::string &source) {
    jinja::lexer_result read;
    try {
        read = jinja::lexer().tokenize(source);
    } catch (const std::runtime_error &e) {
        throw std::runtime_error(lexer_error(e.what()));
    }
    const std::string what = parse_error(read.tokens, read.source);
    if (what.empty()) return;
    // The shortest prefix with the same error ends with the wrong token. A shorter prefix has another error, because it
    // ends too early.
    size_t without = 0, with = read.tokens.size();
    while (with - without > 1) {
        const size_t middle = (without + with) / 2;
        const std::vector<jinja::token> beginning(read.tokens.begin(), read.tokens.begin() + middle);
        (parse_error(beginning, read.source) == what ? with : without) = middle;
    }
    throw std::runtime_error(with ? at_place(reason_of(what), read.source, read.tokens[with - 1].pos)
                                  : reason_of(what));
}

}  // namespace inferd
