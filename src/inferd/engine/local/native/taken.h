// The memory that models take: on each GPU, and in RAM.
//
// llama.cpp's dry run (`no_alloc`) makes a model and a context without weights and buffers. `Taken` measures such a
// context and a real one in the same way, so the sizes before and after a load are comparable.
#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "ggml-backend.h"
#include "llama.h"

namespace inferd {

struct Taken {
    size_t here = 0;                     // bytes in RAM, including those of GPUs that share RAM with the processor
    std::map<std::string, size_t> gpus;  // bytes by the name of the GPU, without RPC workers

    // Adds `bytes` of `device`; null means RAM.
    void add(ggml_backend_dev_t device, size_t bytes);

    // Adds the model, the cache and the buffers of a context.
    void add(const llama_context *ctx);
};

// The free memory of each GPU by its name. A GPU whose driver does not report it is left out.
std::map<std::string, size_t> free_of_gpus();

}  // namespace inferd
