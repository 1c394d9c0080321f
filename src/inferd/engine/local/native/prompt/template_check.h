// Parses a chat template before llama.cpp does, because llama.cpp's error has neither a reason nor a place.
#pragma once

#include <string>

namespace inferd {

// Throws std::runtime_error for a `source` that does not parse, with the reason and the place.
void parse_template(const std::string &source);

}  // namespace inferd
