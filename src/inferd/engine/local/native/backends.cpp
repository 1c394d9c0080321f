#include "backends.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

#include "ggml-rpc.h"

namespace inferd {

namespace {

constexpr char kPrefix[] = "libggml-cpu-", kSuffix[] = ".so";
constexpr char kRpc[] = "RPC";

// Looks up a function of the RPC backend by its name: in a portable build, this backend is a separate shared library.
template <typename Function>
Function rpc_function(const char *name) {
    ggml_backend_reg_t rpc = ggml_backend_reg_by_name(kRpc);
    return rpc ? reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(rpc, name)) : nullptr;
}

}  // namespace

bool load_backends(const std::string &directory, const std::vector<std::string> &files,
                   const std::string &variant) {
    for (const std::string &file : files) ggml_backend_load(file.c_str());
    if (variant.empty()) {
        ggml_backend_load_all_from_path(directory.c_str());
    } else {
        ggml_backend_load((directory + "/" + kPrefix + variant + kSuffix).c_str());
        ggml_backend_load((directory + "/libggml-rpc" + kSuffix).c_str());
    }
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr;
}

bool is_remote(ggml_backend_dev_t device) {
    return ggml_backend_reg_name(ggml_backend_dev_backend_reg(device)) == std::string(kRpc);
}

bool add_worker(const std::string &endpoint) {
    auto add = rpc_function<decltype(&ggml_backend_rpc_add_server)>("ggml_backend_rpc_add_server");
    ggml_backend_reg_t worker = add ? add(endpoint.c_str()) : nullptr;
    if (worker) ggml_backend_register(worker);
    return worker != nullptr;
}

void serve_worker(const std::string &endpoint, int threads) {
    std::vector<ggml_backend_dev_t> gpus, cpus;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_CPU) cpus.push_back(device);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) gpus.push_back(device);
    }
    std::vector<ggml_backend_dev_t> &served = gpus.empty() ? cpus : gpus;
    auto serve = rpc_function<decltype(&ggml_backend_rpc_start_server)>("ggml_backend_rpc_start_server");
    if (serve) serve(endpoint.c_str(), nullptr, threads, served.size(), served.data());
}

void *cpu_function(const char *name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu ? ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name) : nullptr;
}

std::string cpu_variant() {
#ifndef _WIN32
    // ggml does not keep the name of the variant's file. The dynamic linker knows which file contains a function.
    Dl_info info;
    void *function = cpu_function("ggml_backend_get_features");
    if (function && dladdr(function, &info)) {
        const std::string path = info.dli_fname;
        const size_t start = path.rfind(kPrefix), end = path.rfind(kSuffix);
        if (start != std::string::npos && end != std::string::npos) {
            const size_t name = start + sizeof kPrefix - 1;
            return path.substr(name, end - name);
        }
    }
#endif
    return "native";
}

}  // namespace inferd
