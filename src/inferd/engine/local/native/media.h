// Images and sounds through llama.cpp's `mtmd`: pixels or samples become embeddings among the tokens.
//
// The preparing threads encode, one item at a time for each projector; the engine thread only decodes the embeddings.
// Nothing here throws: a false return leaves the reason in `error`.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "taken.h"

struct mtmd_context;
struct mtmd_input_chunk;

namespace inferd {

// The placeholder token for each position of a media span.
constexpr llama_token kMediaToken = -1;

// The bytes are not copied; they must stay valid until `add` returns.
struct MediaItem {
    bool audio = false;
    bool encoded = false;  // an audio file; else `width` x `height` RGB bytes, or float32 samples
    uint32_t width = 0, height = 0;
    const unsigned char *data = nullptr;
    size_t size = 0;
};

// One encoded piece of media in a prompt, from position `at` on.
struct MediaSpan {
    size_t at = 0;
    size_t n_pos = 0;    // positions it takes among the tokens
    size_t n_cells = 0;  // KV cache cells it takes; more than positions in some families
    std::shared_ptr<mtmd_input_chunk> chunk;
    std::vector<float> embeddings;
};

class Projector {
  public:
    // The projector in the GGUF file `path` for `model`.
    static std::unique_ptr<Projector> make(const std::string &path, const llama_model *model, int threads,
                                           std::string &error) noexcept;
    ~Projector();

    // Adds the memory of the projector in the file `path`, by a dry run. Adds nothing for a file that cannot be used.
    static void add_need(const std::string &path, Taken &taken) noexcept;

    bool sees() const noexcept;
    bool hears() const noexcept;
    int sample_rate() const noexcept;  // Hz; 0 without audio

    // The placeholder of an item in the text of a prompt. It is random, so that no client can write it.
    const std::string &marker() const noexcept { return marker_; }

    // Appends the tokens of `item` to `tokens` and its media to `spans`. `n_batch`: tokens of a step.
    bool add(const MediaItem &item, int n_batch, std::vector<llama_token> &tokens, std::vector<MediaSpan> &spans,
             std::string &error) const noexcept;

    // Decodes a span into the cache of `sequence`; codes as `llama_decode`.
    int decode(llama_context *ctx, const MediaSpan &span, int sequence, int n_batch) const noexcept;

  private:
    Projector() = default;
    struct State;
    std::unique_ptr<State> state_;
    std::string marker_;
};

}  // namespace inferd
