#include "media.h"

#include <exception>
#include <mutex>
#include <random>
#include <stdexcept>

#include "../src/llama-ext.h"  // llama.cpp keeps the devices of a model out of its public header
#include "backends.h"
#include "guarded.h"
#include "guards/cancel.h"
#include "host.h"
#include "mtmd-helper.h"
#include "mtmd.h"

namespace inferd {

struct Projector::State {
    const llama_model *model = nullptr;
    std::unique_ptr<mtmd_context, void (*)(mtmd_context *)> ctx{nullptr, mtmd_free};
    CancellableMutex encoding;  // the context has one output buffer
};

namespace {

using Bitmap = std::unique_ptr<mtmd_bitmap, void (*)(mtmd_bitmap *)>;
using Chunks = std::unique_ptr<mtmd_input_chunks, void (*)(mtmd_input_chunks *)>;

// Decodes a sound file. A few bytes can decode to days of sound, so patches/sounds.patch limits the length.
Bitmap unpacked(const mtmd_context *ctx, const MediaItem &item) {
    return Bitmap(
        mtmd_helper_bitmap_init_from_buf(ctx, item.data, item.size, false, mtmd_helper_init_opt_default()).bitmap,
        mtmd_bitmap_free);
}

Bitmap bitmap_of(const mtmd_context *ctx, const MediaItem &item) {
    Bitmap owned(nullptr, mtmd_bitmap_free);
    if (item.encoded) {
        owned = unpacked(ctx, item);
    } else if (item.audio) {
        owned.reset(
            mtmd_bitmap_init_from_audio(item.size / sizeof(float), reinterpret_cast<const float *>(item.data)));
    } else {
        owned.reset(mtmd_bitmap_init(item.width, item.height, item.data));
    }
    if (!owned)
        throw std::runtime_error(item.audio ? "the sound cannot be decoded" : "the image cannot be decoded");
    // With some model families, llama.cpp ends the process for a sound shorter than one window of its spectrogram.
    const size_t least = item.audio ? mtmd_get_audio_sample_rate(ctx) / 10 * sizeof(float) : 0;
    if (mtmd_bitmap_get_n_bytes(owned.get()) < least) throw std::runtime_error("the sound is shorter than 0.1 s");
    return owned;
}

std::string random_marker() {
    std::random_device random;
    std::string marker = "<__media_";
    for (int i = 0; i < 4; i++) marker += std::to_string(random());
    return marker + "__>";
}

// Whether the projector may be on a GPU, as its model is. ggml reports a worker on another host as a GPU. The projector
// must not be loaded there.
bool may_use_gpu(const llama_model *model) {
    ggml_backend_dev_t gpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU);
    return llama_model_n_devices(model) > 0 && (!gpu || !is_remote(gpu));
}

}  // namespace

std::unique_ptr<Projector> Projector::make(const std::string &path, const llama_model *model, int threads,
                                           std::string &error) noexcept {
    std::unique_ptr<Projector> projector(new Projector());
    const bool ok = guarded(error, [&] {
        projector->state_ = std::make_unique<State>();
        projector->state_->model = model;
        projector->marker_ = random_marker();
        mtmd_log_set(keep_log_line, nullptr);
        mtmd_helper_log_set(keep_log_line, nullptr);
        mtmd_context_params params = mtmd_context_params_default();
        params.print_timings = false;
        params.n_threads = threads;
        params.media_marker = projector->marker_.c_str();
        params.warmup = false;
        params.use_gpu = may_use_gpu(model);
        projector->state_->ctx.reset(mtmd_init_from_file(path.c_str(), model, params));
        if (!projector->state_->ctx) throw std::runtime_error("llama.cpp cannot load it for this model");
    });
    return ok ? std::move(projector) : nullptr;
}

void Projector::add_need(const std::string &path, const llama_model *model, Taken &taken) noexcept {
    std::string error;
    guarded(error, [&] {
        mtmd_context_params params = mtmd_context_params_default();
        params.warmup = false;
        params.use_gpu = may_use_gpu(model);
        for (const auto &[device, bytes] : mtmd_get_memory_usage(path.c_str(), params)) taken.add(device, bytes);
    });
}

Projector::~Projector() = default;

CancellableMutex &Projector::encoding() const noexcept { return state_->encoding; }

bool Projector::sees() const noexcept { return mtmd_support_vision(state_->ctx.get()); }
bool Projector::hears() const noexcept { return mtmd_support_audio(state_->ctx.get()); }
int Projector::sample_rate() const noexcept { return hears() ? mtmd_get_audio_sample_rate(state_->ctx.get()) : 0; }

bool Projector::add(const MediaItem &item, int n_batch, std::vector<llama_token> &tokens,
                    std::vector<MediaSpan> &spans, std::string &error) const noexcept {
    return guarded(error, [&] {
        mtmd_context *ctx = state_->ctx.get();
        const Bitmap bitmap = bitmap_of(ctx, item);
        const mtmd_bitmap *bitmaps[] = {bitmap.get()};
        const mtmd_input_text text = {marker_.c_str(), marker_.size(), false, true};
        const Chunks chunks(mtmd_input_chunks_init(), mtmd_input_chunks_free);
        if (mtmd_tokenize(ctx, chunks.get(), &text, bitmaps, 1) != 0) {
            throw std::runtime_error(item.audio ? "the sound cannot be prepared" : "the image cannot be prepared");
        }
        for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); i++) {
            const mtmd_input_chunk *chunk = mtmd_input_chunks_get(chunks.get(), i);
            if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
                size_t n = 0;
                const llama_token *first = mtmd_input_chunk_get_tokens_text(chunk, &n);
                tokens.insert(tokens.end(), first, first + n);
                continue;
            }
            MediaSpan span;
            span.at = tokens.size();
            span.n_pos = mtmd_input_chunk_get_n_pos(chunk);
            span.n_cells = mtmd_input_chunk_get_n_tokens(chunk);
            if (mtmd_decode_use_non_causal(ctx, chunk) && span.n_cells > static_cast<size_t>(n_batch)) {
                throw std::runtime_error(
                    "it takes " + std::to_string(span.n_cells) +
                    " tokens, which this model needs in one batch: serve with a larger --n-batch");
            }
            span.chunk = {mtmd_input_chunk_copy(chunk), mtmd_input_chunk_free};
            {
                std::lock_guard<CancellableMutex> lock(state_->encoding);
                if (mtmd_encode_chunk(ctx, chunk) != 0) throw std::runtime_error("llama.cpp cannot encode it");
                const float *out = mtmd_get_output_embd(ctx);
                span.embeddings.assign(out, out + span.n_cells * llama_model_n_embd_inp(state_->model));
            }
            tokens.insert(tokens.end(), span.n_pos, kMediaToken);
            spans.push_back(std::move(span));
        }
    });
}

int Projector::decode(llama_context *ctx, const MediaSpan &span, int sequence, int n_batch) const noexcept {
    try {
        llama_pos after = 0;
        return mtmd_helper_decode_image_chunk(
            state_->ctx.get(), ctx, span.chunk.get(), const_cast<float *>(span.embeddings.data()),
            static_cast<llama_pos>(span.at), sequence, n_batch, &after, nullptr, nullptr);
    } catch (...) {
        return kDecodeThrew;
    }
}

}  // namespace inferd
