// Constrains answers to a schema or a grammar with llguidance, through its C interface.
//
// llguidance is a Rust library. The extension module of its Python package exports the C interface, so the build needs
// no Rust compiler. A process opens the library once. Nothing here touches Python or throws. A preparing thread makes a
// guide, and then the engine thread uses it. Only one thread at a time may use a guide.
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

// Opens the library in the file `path`, unless it is open already, and sets `version` to its version. Returns false
// with the reason in `error` if the library or one of its functions is missing.
bool open_guidance(const std::string &path, std::string &version, std::string &error) noexcept;

// The vocabulary of a model for llguidance: the bytes of each token, and which tokens end an answer. The model must
// outlive its `GuidanceVocab`.
class GuidanceVocab {
  public:
    explicit GuidanceVocab(const llama_vocab *vocab) noexcept : vocab_(vocab) {}
    ~GuidanceVocab();
    GuidanceVocab(const GuidanceVocab &) = delete;
    GuidanceVocab &operator=(const GuidanceVocab &) = delete;

    const llama_vocab *vocab() const { return vocab_; }
    // The first call makes the tokenizer, which takes about 5 microseconds for each token of the vocabulary. Returns
    // null with the reason in `error` if that fails.
    const LlgTokenizer *tokenizer(std::string &error) noexcept;

  private:
    const llama_vocab *vocab_;
    std::mutex mutex_;
    LlgTokenizer *tokenizer_ = nullptr;
};

// Ends llguidance's computation for a guide, from any thread.
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

// The state of one answer in a grammar.
class Guide {
  public:
    // `kind` is "json_schema" or "lark". Returns null with llguidance's reason in `error` if it refuses the grammar.
    static std::unique_ptr<Guide> make(std::shared_ptr<GuidanceVocab> vocab, const char *kind,
                                       const std::string &grammar, std::string &error) noexcept;
    ~Guide();
    Guide(const Guide &) = delete;
    Guide &operator=(const Guide &) = delete;

    // Its `stop` ends this guide from any thread. Then the guide allows no token.
    const std::shared_ptr<GuideStop> &stop() const noexcept { return stop_; }

    // Allows every token until the answer contains one of the words or tokens. The grammar begins with this word or
    // token.
    void wait_for(std::vector<std::string> words, std::vector<llama_token> tokens) noexcept;

    // Whether `token` may come next. An end token may come where the grammar accepts the answer.
    bool allows(llama_token token) noexcept;
    // One bit for each token of the vocabulary, in words of 32 bits: whether the token may come next. Null if none may.
    const uint32_t *mask() noexcept;
    // Advances by a token. Returns false if the token is not allowed.
    bool accept(llama_token token) noexcept;
    // Advances by text that is already in the prompt. Returns false if the grammar does not allow it.
    bool accept_text(const std::string &text) noexcept;
    // Whether the answer may end here.
    bool accepting() noexcept;
    // Whether only the end can follow.
    bool complete() noexcept;
    // The tokens of the text that the grammar forces next, as the model's tokenizer splits it. They serve as a draft.
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
