// Encodes images and sounds with llama.cpp's `mtmd`: pixels or samples become embeddings, which stand among the tokens
// of a prompt.
//
// The preparing threads encode, one item at a time for each projector. The engine thread only decodes the embeddings.
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

class CancellableMutex;

// The placeholder token for each position of a media span.
constexpr llama_token kMediaToken = -1;

// An image or a sound to encode. The bytes are not copied: they must stay valid until `add` returns.
struct MediaItem {
    bool audio = false;
    bool encoded = false;  // `data` is an audio file; otherwise `width` x `height` RGB pixels or float32 samples
    uint32_t width = 0, height = 0;
    const unsigned char *data = nullptr;
    size_t size = 0;
};

// One encoded part of an image or a sound in a prompt, from position `at` on.
struct MediaSpan {
    size_t at = 0;
    size_t n_pos = 0;    // how many positions among the tokens it takes
    size_t n_cells = 0;  // how many cells of the KV cache it takes: in some model families, more than positions
    std::shared_ptr<mtmd_input_chunk> chunk;
    std::vector<float> embeddings;
};

class Projector {
  public:
    // Loads the projector in the GGUF file `path` for `model`. Returns null with the reason in `error` if that fails.
    static std::unique_ptr<Projector> make(const std::string &path, const llama_model *model, int threads,
                                           std::string &error) noexcept;
    ~Projector();

    // Adds the memory that the projector in the file `path` would take beside `model`, as a dry run computes it. Adds
    // nothing for a file that cannot be used.
    static void add_need(const std::string &path, const llama_model *model, Taken &taken) noexcept;

    bool sees() const noexcept;
    bool hears() const noexcept;
    int sample_rate() const noexcept;  // Hz; 0 without audio

    // The placeholder for an item in the text of a prompt. It is random, so that no client can write it.
    const std::string &marker() const noexcept { return marker_; }

    // The mutex that is locked while an item is encoded.
    CancellableMutex &encoding() const noexcept;

    // Encodes `item`. Appends its tokens to `tokens`, and its encoded parts to `spans`. `n_batch`: the most tokens of a
    // step. A cancel of the preparation ends the encoding before the next part.
    bool add(const MediaItem &item, int n_batch, std::vector<llama_token> &tokens, std::vector<MediaSpan> &spans,
             std::string &error) const noexcept;

    // Decodes a span into the KV cache of `sequence`. Returns a code as `llama_decode` does, or kDecodeThrew.
    int decode(llama_context *ctx, const MediaSpan &span, int sequence, int n_batch) const noexcept;

  private:
    Projector() = default;
    struct State;
    std::unique_ptr<State> state_;
    std::string marker_;
};

}  // namespace inferd
