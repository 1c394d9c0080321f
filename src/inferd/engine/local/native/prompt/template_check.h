// Parses a chat template ahead of llama.cpp, whose own error has no reason and no place.
#pragma once

#include <string>

namespace inferd {

// Throws std::runtime_error with the reason and the place in `source`.
void parse_template(const std::string &source);

}  // namespace inferd
