// A bare token loop in C++ on the libraries that the engine links: the cost of decoding alone.
//
// Arguments: model, threads, n_ctx. Each line of stdin is "n_predict HEX", the prompt's text in hex; each line of
// stdout is a JSON object with prefill_ms and times (seconds of the clock at each token).

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "llama.h"

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void require(bool ok, const char *what) {
    if (!ok) {
        std::fprintf(stderr, "bare_loop: %s failed\n", what);
        std::exit(1);
    }
}

int main(int argc, char **argv) {
    require(argc == 4, "reading MODEL THREADS N_CTX");
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    require(model != nullptr, "loading the model");
    llama_context_params params = llama_context_default_params();
    params.n_ctx = std::atoi(argv[3]);
    params.n_batch = 512;
    params.n_threads = std::atoi(argv[2]);
    params.n_threads_batch = params.n_threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *ctx = llama_init_from_model(model, params);
    require(ctx != nullptr, "making the context");
    const llama_vocab *vocab = llama_model_get_vocab(model);
    llama_sampler *sampler = llama_sampler_init_greedy();
    std::puts("ready");
    std::fflush(stdout);

    std::string line;
    while (std::getline(std::cin, line)) {
        std::istringstream in(line);
        size_t n_predict = 0;
        std::string hex, text;
        in >> n_predict >> hex;
        for (size_t at = 0; at + 1 < hex.size(); at += 2) {
            text.push_back(static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16)));
        }
        std::vector<llama_token> prompt(params.n_ctx);
        const int n_prompt =
            llama_tokenize(vocab, text.data(), text.size(), prompt.data(), prompt.size(), true, true);
        require(n_prompt > 0, "tokenising the prompt");
        prompt.resize(n_prompt);
        llama_memory_clear(llama_get_memory(ctx), true);
        const double start = now();
        for (size_t at = 0; at < prompt.size(); at += 512) {
            const int n = static_cast<int>(std::min<size_t>(512, prompt.size() - at));
            require(llama_decode(ctx, llama_batch_get_one(prompt.data() + at, n)) == 0, "the prompt");
        }
        llama_token token = llama_sampler_sample(sampler, ctx, -1);
        std::vector<double> times{now()};
        char piece[256];
        while (times.size() < n_predict && !llama_vocab_is_eog(vocab, token)) {
            llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
            require(llama_decode(ctx, llama_batch_get_one(&token, 1)) == 0, "a token");
            token = llama_sampler_sample(sampler, ctx, -1);
            times.push_back(now());
        }
        std::printf("{\"prefill_ms\":%.3f,\"times\":[", (times.front() - start) * 1e3);
        for (size_t i = 0; i < times.size(); i++) {
            std::printf("%s%.6f", i ? "," : "", times[i]);
        }
        std::puts("]}");
        std::fflush(stdout);
    }
    return 0;
}
