// Constrains answers to a schema or a grammar with llguidance, through its C interface.
//
// llguidance is a Rust library. The extension module of its Python package exports the C interface, so the build needs
// no Rust compiler. A process opens it once. Nothing here touches Python or throws. A preparing thread makes a guide,
// then the engine thread uses it: one thread at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "guards/cancel.h"
#include "llama.h"

struct LlgCancellationHandle;
struct LlgMatcher;
struct LlgTokenizer;

namespace inferd {

// Opens the library in the file `path`; false with the reason in `error` when it or one of its functions is missing.
// A second call does nothing. `version` becomes the library's version.
bool open_guidance(const std::string &path, std::string &version, std::string &error) noexcept;

// The vocabulary of a model as llguidance sees it: the bytes of each token, and which tokens end an answer. The model
// must outlive it.
class GuidanceVocab {
  public:
    explicit GuidanceVocab(const llama_vocab *vocab) noexcept : vocab_(vocab) {}
    ~GuidanceVocab();
    GuidanceVocab(const GuidanceVocab &) = delete;
    GuidanceVocab &operator=(const GuidanceVocab &) = delete;

    const llama_vocab *vocab() const { return vocab_; }
    // Made at its first use, which takes about 5 microseconds per token of the vocabulary; null with `error` set.
    const LlgTokenizer *tokenizer(std::string &error) noexcept;

  private:
    const llama_vocab *vocab_;
    std::mutex mutex_;
    LlgTokenizer *tokenizer_ = nullptr;
};

// Ends what llguidance computes for a guide, from any thread.
class GuideStop final : public Stoppable {
  public:
    explicit GuideStop(LlgMatcher *matcher) noexcept;
    ~GuideStop();
    GuideStop(const GuideStop &) = delete;
    GuideStop &operator=(const GuideStop &) = delete;

    void stop() noexcept override;
    bool stopped() const noexcept { return stopped_.load(std::memory_order_relaxed); }

  private:
    LlgCancellationHandle *const handle_;
    std::atomic<bool> stopped_{false};
};

// The position of one answer in a grammar.
class Guide {
  public:
    // `kind` is "json_schema" or "lark"; null with the library's reason in `error`.
    static std::unique_ptr<Guide> make(std::shared_ptr<GuidanceVocab> vocab, const char *kind,
                                       const std::string &grammar, std::string &error) noexcept;
    ~Guide();
    Guide(const Guide &) = delete;
    Guide &operator=(const Guide &) = delete;

    // Stops it from any thread. A stopped guide allows nothing.
    const std::shared_ptr<GuideStop> &stop() const noexcept { return stop_; }

    // Allows every token until the answer contains one of the words or tokens; the grammar begins with that word or
    // token.
    void wait_for(std::vector<std::string> words, std::vector<llama_token> tokens) noexcept;

    // Whether `token` may come next. An end token may come where the grammar accepts the answer.
    bool allows(llama_token token) noexcept;
    // A bit for each token that may come next, in words of 32; null if none may.
    const uint32_t *mask() noexcept;
    // Advances by a token; false if it is not allowed.
    bool accept(llama_token token) noexcept;
    // Advances by text that is already in the prompt; false if the grammar does not allow it.
    bool accept_text(const std::string &text) noexcept;
    // Whether the answer may end here.
    bool accepting() noexcept;
    // Whether only the end can follow.
    bool complete() noexcept;
    // The tokens that the grammar forces next, as the model's tokenizer writes them: a draft.
    std::vector<llama_token> forced() noexcept;

  private:
    Guide(std::shared_ptr<GuidanceVocab> owner, const LlgTokenizer *tokenizer) noexcept
        : owner_(std::move(owner)), vocab_(owner_->vocab()), tokenizer_(tokenizer) {}

    bool consume(llama_token token) noexcept;
    bool look_for_word(llama_token token);

    const std::shared_ptr<GuidanceVocab> owner_;
    const llama_vocab *vocab_;
    const LlgTokenizer *tokenizer_;
    LlgMatcher *matcher_ = nullptr;
    std::shared_ptr<GuideStop> stop_;
    std::vector<uint32_t> mask_;
    bool waiting_ = false;
    std::vector<std::string> words_;
    std::vector<llama_token> tokens_;
    std::string tail_;  // the end of the answer, where a word may have begun
};

}  // namespace inferd
