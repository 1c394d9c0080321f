// Turns C++ exceptions into error strings.
#pragma once

#include <exception>
#include <string>

namespace inferd {

// Calls `body`. If it throws, returns false and sets `error` to the reason.
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

}  // namespace inferd
