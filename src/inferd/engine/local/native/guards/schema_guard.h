// Compiled into llama.cpp's converter of JSON Schemas by a forced include, ahead of its own text: it warns on stderr of
// what it cannot express, and quotes the client's schema there.
#pragma once

#include <cstdio>

namespace inferd {

template <typename... Any>
void say_nothing(std::FILE *, const char *, Any...) {}

}  // namespace inferd

#define fprintf inferd::say_nothing
