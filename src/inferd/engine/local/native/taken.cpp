#include "taken.h"

#include "../src/llama-ext.h"  // llama.cpp keeps the sizes of a context out of its public header
#include "backends.h"

namespace inferd {

namespace {

bool is_gpu(ggml_backend_dev_t device) {
    const auto type = ggml_backend_dev_type(device);
    return (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) && !is_remote(device);
}

bool shares_ram(ggml_backend_dev_t device) {
#ifdef __APPLE__
    return true;
#else
    return ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU;
#endif
}

}  // namespace

void Taken::add(ggml_backend_dev_t device, size_t bytes) {
    const bool on_gpu = device && is_gpu(device);
    if (on_gpu && bytes) gpus[ggml_backend_dev_name(device)] += bytes;
    if (!device || (on_gpu ? shares_ram(device) : !is_remote(device))) here += bytes;
}

void Taken::add(const llama_context *ctx) {
    for (const auto &[type, part] : llama_get_memory_breakdown(ctx)) {
        // A GPU's driver has a type of its own for RAM that the GPU can read.
        const bool in_ram = ggml_backend_buft_is_host(type);
        add(in_ram ? nullptr : ggml_backend_buft_get_device(type), part.total());
    }
}

std::map<std::string, size_t> free_of_gpus() {
    std::map<std::string, size_t> found;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        size_t free = 0, total = 0;
        if (is_gpu(device)) {
            ggml_backend_dev_memory(device, &free, &total);
            if (total) found[ggml_backend_dev_name(device)] = free;
        }
    }
    return found;
}

}  // namespace inferd
