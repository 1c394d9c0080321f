// ggml's compute backends: compiled in, or shared libraries that are loaded when the engine starts (INFERD_PORTABLE).
#pragma once

#include <string>
#include <vector>

#include "ggml-backend.h"

namespace inferd {

// Loads the backends of a portable build: each of `files`, then from `directory` the CPU variant named `variant`, or
// for "" the best that this machine runs. A file that cannot be loaded only adds a line to llama.cpp's log, because
// the reason is often a missing driver. False when no CPU backend is loaded afterwards.
bool load_backends(const std::string &directory, const std::vector<std::string> &files, const std::string &variant);

// The variant of the CPU backend in use: "haswell"; "native" for the one that is compiled in.
std::string cpu_variant();

// Registers the devices of the RPC worker at `endpoint` ("IP:port") for the models that are loaded afterwards. The
// worker must be reachable: ggml aborts the process otherwise. False if it has no device.
bool add_worker(const std::string &endpoint);

// Serves the devices of this process, its GPUs or else its CPU, at `endpoint` to one client after the other. Returns
// only if it cannot listen there.
void serve_worker(const std::string &endpoint, int threads);

// Whether a device belongs to an RPC worker. ggml reports such a device as a GPU.
bool is_remote(ggml_backend_dev_t device);

// A function of the CPU backend by its name, or null. The variant that contains it is known only at run time.
void *cpu_function(const char *name);

}  // namespace inferd
