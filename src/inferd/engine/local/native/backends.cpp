#include "backends.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

#include "ggml-backend.h"

namespace inferd {

namespace {

constexpr char kPrefix[] = "libggml-cpu-", kSuffix[] = ".so";

}  // namespace

bool load_backends(const std::string &directory, const std::vector<std::string> &files,
                   const std::string &variant) {
    for (const std::string &file : files) ggml_backend_load(file.c_str());
    if (variant.empty()) {
        ggml_backend_load_all_from_path(directory.c_str());
    } else {
        ggml_backend_load((directory + "/" + kPrefix + variant + kSuffix).c_str());
    }
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) != nullptr;
}

void *cpu_function(const char *name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return cpu ? ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name) : nullptr;
}

std::string cpu_variant() {
#ifndef _WIN32
    // ggml does not keep the file name, but the dynamic linker knows the file of a function.
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
