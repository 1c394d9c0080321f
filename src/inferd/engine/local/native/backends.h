// ggml's compute backends. They are compiled in, or shared libraries that the engine loads when it starts
// (INFERD_PORTABLE).
#pragma once

#include <string>
#include <vector>

#include "ggml-backend.h"

namespace inferd {

// Loads the backends of a portable build: first `files`, then the backends in `directory`. Of the CPU variants there,
// it loads the one named `variant`, or the best for this machine if `variant` is empty. A file that cannot be loaded
// only adds a line to llama.cpp's log, because often only a driver is missing. Returns false if there is no CPU backend
// afterwards.
bool load_backends(const std::string &directory, const std::vector<std::string> &files, const std::string &variant);

// The variant of the CPU backend in use, such as "haswell". A backend that is compiled in is "native".
std::string cpu_variant();

// Registers the devices of the RPC worker at `endpoint` ("IP:port") for the models that are loaded afterwards. The
// worker must be reachable: otherwise ggml aborts the process. Returns false if the worker has no device.
bool add_worker(const std::string &endpoint);

// Serves the GPUs of this process at `endpoint`, or its CPU if it has no GPU, to one client at a time. Returns only if
// it cannot listen at `endpoint`.
void serve_worker(const std::string &endpoint, int threads);

// Whether a device belongs to an RPC worker. ggml reports such a device as a GPU.
bool is_remote(ggml_backend_dev_t device);

// Looks up a function of the CPU backend by its name, because the CPU variant is known only at run time. Null if the
// backend has no such function.
void *cpu_function(const char *name);

}  // namespace inferd
