// ggml's compute backends: compiled in, or shared libraries that are loaded when the engine starts (INFERD_PORTABLE).
#pragma once

#include <string>
#include <vector>

namespace inferd {

// Loads the backends of a portable build: each of `files`, then from `directory` the CPU variant that is named, or for
// "" the best that this machine runs. A file that cannot be loaded is a line in llama.cpp's log and nothing more,
// because the reason is often a missing driver. False when there is no CPU backend afterwards.
bool load_backends(const std::string &directory, const std::vector<std::string> &files, const std::string &variant);

// The variant of the CPU backend in use: "haswell"; "native" for the one that is compiled in.
std::string cpu_variant();

// A function of the CPU backend by its name, or null: which of the variants holds it is known only at run time.
void *cpu_function(const char *name);

}  // namespace inferd
