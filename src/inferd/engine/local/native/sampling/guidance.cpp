#include "sampling/guidance.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#ifndef _WIN32
#include <dlfcn.h>
#endif

#include "guarded.h"
#include "guards/cancel.h"

namespace inferd {

namespace {

// The parts of llguidance's C interface that inferd uses, as of version 1.9.0.

using TokenizeFn = size_t (*)(const void *user, const uint8_t *bytes, size_t n_bytes, uint32_t *out, size_t n_out);

struct TokenizerInit {
    size_t struct_size;
    uint32_t vocab_size;
    uint32_t tok_eos;
    const uint32_t *token_lens;
    const uint8_t *token_bytes;
    const char *tokenizer_json;
    bool tokenize_assumes_string;
    TokenizeFn tokenize_fn;
    bool use_approximate_greedy_tokenize_fn;
    const void *tokenize_user_data;
    const char *const *slices;
    const uint32_t *tok_eos_extra;
    uint32_t tok_eos_extra_count;
};

struct ParserLimits {
    size_t max_items_in_row;
    uint64_t initial_lexer_fuel;
    uint64_t step_lexer_fuel;
    size_t step_max_items;
    size_t max_lexer_states;
    size_t max_grammar_size;
    bool precompute_large_lexemes;
    bool verbose_errors;
};

struct ConstraintInit {
    const LlgTokenizer *tokenizer;
    uint32_t log_buffer_level;
    uint32_t log_stderr_level;
    bool ff_tokens_ok;
    bool backtrack_ok;
    ParserLimits limits;
    uint64_t room[8];  // room for fields of later versions, which the library fills with defaults
};

struct Library {
    const char *(*get_version)();
    LlgTokenizer *(*new_tokenizer_v2)(const TokenizerInit *, char *error, size_t n_error);
    void (*free_tokenizer)(LlgTokenizer *);
    void (*constraint_init_set_defaults)(ConstraintInit *, const LlgTokenizer *);
    LlgMatcher *(*new_matcher)(const ConstraintInit *, const char *kind, const char *data);
    void (*free_matcher)(LlgMatcher *);
    const char *(*matcher_get_error)(LlgMatcher *);
    size_t (*matcher_get_mask_byte_size)(const LlgMatcher *);
    int32_t (*matcher_compute_mask_into)(LlgMatcher *, uint32_t *, size_t n_bytes);
    int32_t (*matcher_validate_tokens)(LlgMatcher *, const uint32_t *, size_t);
    int32_t (*matcher_consume_tokens)(LlgMatcher *, const uint32_t *, size_t);
    bool (*matcher_is_accepting)(LlgMatcher *);
    bool (*matcher_is_stopped)(const LlgMatcher *);
    int32_t (*matcher_compute_ff_tokens)(LlgMatcher *, uint32_t *, size_t);
    LlgCancellationHandle *(*matcher_get_cancellation_handle)(LlgMatcher *);
    void (*cancel)(const LlgCancellationHandle *);
    void (*free_cancellation_handle)(LlgCancellationHandle *);
};

Library library;
bool opened = false;
std::mutex opening;

template <typename Function>
void find(void *handle, const char *name, Function &function) {
#ifdef _WIN32
    void *found = nullptr;
#else
    void *found = dlsym(handle, name);
#endif
    if (!found) throw std::runtime_error(std::string("it has no function ") + name);
    std::memcpy(&function, &found, sizeof function);
}

// The most parser items at one position of an answer. An optional property of an object makes about four items. It
// takes a microsecond to compute 20 items.
constexpr size_t kMaxItems = 20'000;
// The most items of a grammar, because its compilation cannot be interrupted. Each schema makes about six items.
constexpr size_t kMaxGrammar = 60'000;

// llguidance divides the tokens of JSON strings into slices, by the greatest length of their text. If the grammar
// allows all tokens of a slice, a mask takes the whole slice at once; otherwise it checks each token of the slice. The
// default lengths of llguidance are 10, 30 and any length. With the lengths below, masks of strings with a `maxLength`
// take three quarters of the time.
constexpr int kSliceLengths[] = {1, 2, 3, 4, 5, 6, 8, 12};

std::vector<std::string> slices() {
    const std::string text = "[^\"\\\\\\x00-\\x1F\\x7F]";
    std::vector<std::string> found = {"[\\x20\\x0A\\x0D\\x09]+"};
    for (const int length : kSliceLengths) found.push_back(text + "{1," + std::to_string(length) + "}");
    found.push_back(text + "+");
    return found;
}

constexpr char kSpecial = '\xFF';  // marks the name of a control token; no text begins with it

std::string piece_of(const llama_vocab *vocab, llama_token token, bool special) {
    std::string piece(64, '\0');
    int n = llama_token_to_piece(vocab, token, &piece[0], static_cast<int>(piece.size()), 0, special);
    if (n < 0) {
        piece.resize(-n);
        n = llama_token_to_piece(vocab, token, &piece[0], -n, 0, special);
    }
    piece.resize(n);
    return piece;
}

// The bytes of a token for llguidance, which never chooses a token without bytes.
std::string bytes_of(const llama_vocab *vocab, llama_token token) {
    const auto attributes = llama_vocab_get_attr(vocab, token);
    if (llama_vocab_is_eog(vocab, token) || (attributes & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN))) {
        return kSpecial + piece_of(vocab, token, true);
    }
    std::string piece = piece_of(vocab, token, false);
    if (!piece.empty() && piece[0] == kSpecial) piece.clear();
    return piece;
}

std::vector<llama_token> tokens_of(const llama_vocab *vocab, const std::string &text, bool special) {
    const auto make = [&](const std::string &from) {
        std::vector<llama_token> tokens(from.size() + 8);
        const auto n = llama_tokenize(vocab, from.data(), static_cast<int32_t>(from.size()), tokens.data(),
                                      static_cast<int32_t>(tokens.size()), false, special);
        tokens.resize(std::max(n, 0));
        return tokens;
    };
    const auto is_text = [&](const std::vector<llama_token> &tokens) {
        std::string whole;
        for (const llama_token token : tokens) whole += piece_of(vocab, token, true);
        return whole == text;
    };
    auto tokens = make(text);
    if (is_text(tokens)) return tokens;
    // Some tokenizers put a blank before any text. Tokenise the text after a line break, and remove the tokens of the
    // blank and the line break.
    const auto first = make("\n");
    auto all = make("\n" + text);
    if (all.size() < first.size() || !std::equal(first.begin(), first.end(), all.begin())) return tokens;
    all.erase(all.begin(), all.begin() + static_cast<ptrdiff_t>(first.size()));
    return is_text(all) ? all : tokens;
}

// llguidance calls this to tokenise forced text, and checks that the tokens have the same bytes as the text.
size_t tokenize(const void *user, const uint8_t *bytes, size_t n_bytes, uint32_t *out, size_t n_out) {
    std::string error;
    size_t n = 0;
    guarded(error, [&] {
        const std::string text(reinterpret_cast<const char *>(bytes), n_bytes);
        const auto tokens = tokens_of(static_cast<const llama_vocab *>(user), text, false);
        n = tokens.size();
        std::copy_n(tokens.begin(), std::min(n, n_out), out);
    });
    return n;
}

}  // namespace

bool open_guidance(const std::string &path, std::string &version, std::string &error) noexcept {
    return guarded(error, [&] {
        std::lock_guard<std::mutex> lock(opening);
        if (!opened) {
#ifdef _WIN32
            throw std::runtime_error("it cannot be opened on Windows");
#else
            void *handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
            if (!handle) throw std::runtime_error(dlerror());
            find(handle, "llg_get_version", library.get_version);
            find(handle, "llg_new_tokenizer_v2", library.new_tokenizer_v2);
            find(handle, "llg_free_tokenizer", library.free_tokenizer);
            find(handle, "llg_constraint_init_set_defaults", library.constraint_init_set_defaults);
            find(handle, "llg_new_matcher", library.new_matcher);
            find(handle, "llg_free_matcher", library.free_matcher);
            find(handle, "llg_matcher_get_error", library.matcher_get_error);
            find(handle, "llg_matcher_get_mask_byte_size", library.matcher_get_mask_byte_size);
            find(handle, "llg_matcher_compute_mask_into", library.matcher_compute_mask_into);
            find(handle, "llg_matcher_validate_tokens", library.matcher_validate_tokens);
            find(handle, "llg_matcher_consume_tokens", library.matcher_consume_tokens);
            find(handle, "llg_matcher_is_accepting", library.matcher_is_accepting);
            find(handle, "llg_matcher_is_stopped", library.matcher_is_stopped);
            find(handle, "llg_matcher_compute_ff_tokens", library.matcher_compute_ff_tokens);
            find(handle, "llg_matcher_get_cancellation_handle", library.matcher_get_cancellation_handle);
            find(handle, "llg_cancel", library.cancel);
            find(handle, "llg_free_cancellation_handle", library.free_cancellation_handle);
            opened = true;
#endif
        }
        version = library.get_version();
    });
}

GuidanceVocab::~GuidanceVocab() {
    if (tokenizer_) library.free_tokenizer(tokenizer_);
}

const LlgTokenizer *GuidanceVocab::tokenizer(std::string &error) noexcept {
    guarded(error, [&] {
        std::lock_guard<std::mutex> lock(mutex_);
        if (tokenizer_) return;
        const int32_t n = llama_vocab_n_tokens(vocab_);
        std::string bytes;
        std::vector<uint32_t> lengths, ends;
        for (llama_token token = 0; token < n; token++) {
            const std::string piece = bytes_of(vocab_, token);
            lengths.push_back(static_cast<uint32_t>(piece.size()));
            bytes += piece;
            if (llama_vocab_is_eog(vocab_, token)) ends.push_back(static_cast<uint32_t>(token));
        }
        if (ends.empty()) throw std::runtime_error("the model's vocabulary has no token that ends an answer");
        TokenizerInit init = {};
        init.struct_size = sizeof init;
        init.vocab_size = static_cast<uint32_t>(n);
        init.tok_eos = ends[0];
        init.token_lens = lengths.data();
        init.token_bytes = reinterpret_cast<const uint8_t *>(bytes.data());
        init.tokenize_assumes_string = true;
        init.tokenize_fn = tokenize;
        init.tokenize_user_data = vocab_;
        const auto sliced = slices();
        std::vector<const char *> each;
        for (const auto &slice : sliced) each.push_back(slice.c_str());
        each.push_back(nullptr);
        init.slices = each.data();
        init.tok_eos_extra = ends.data() + 1;
        init.tok_eos_extra_count = static_cast<uint32_t>(ends.size() - 1);
        char reason[256] = "";
        tokenizer_ = library.new_tokenizer_v2(&init, reason, sizeof reason);
        if (!tokenizer_) throw std::runtime_error(reason);
    });
    return tokenizer_;
}

GuideStop::GuideStop(LlgMatcher *matcher) noexcept : handle_(library.matcher_get_cancellation_handle(matcher)) {}

GuideStop::~GuideStop() { library.free_cancellation_handle(handle_); }

void GuideStop::stop() noexcept {
    stopped_.store(true, std::memory_order_relaxed);
    library.cancel(handle_);
}

std::unique_ptr<Guide> Guide::make(std::shared_ptr<GuidanceVocab> vocab, const char *kind,
                                   const std::string &grammar, std::string &error) noexcept {
    std::unique_ptr<Guide> guide;
    const LlgTokenizer *tokenizer = vocab->tokenizer(error);
    if (!tokenizer) return guide;
    guarded(error, [&] {
        throw_if_cancelled();
        ConstraintInit init = {};
        library.constraint_init_set_defaults(&init, tokenizer);
        init.log_buffer_level = init.log_stderr_level = 0;
        init.limits.max_items_in_row = kMaxItems;
        init.limits.max_grammar_size = kMaxGrammar;
        init.limits.verbose_errors = false;  // they would quote the grammar
        std::unique_ptr<Guide> made(new Guide(std::move(vocab), tokenizer));
        made->matcher_ = library.new_matcher(&init, kind, grammar.c_str());
        made->stop_ = std::make_shared<GuideStop>(made->matcher_);
        made->mask_.resize(library.matcher_get_mask_byte_size(made->matcher_) / sizeof(uint32_t));
        const bool begins = made->mask() != nullptr;
        if (const char *reason = library.matcher_get_error(made->matcher_)) throw std::runtime_error(reason);
        if (!begins) throw std::runtime_error("no answer can follow it");
        guide = std::move(made);
    });
    return guide;
}

Guide::~Guide() {
    if (matcher_) library.free_matcher(matcher_);
}

void Guide::wait_for(std::vector<std::string> words, std::vector<llama_token> tokens) noexcept {
    words_ = std::move(words);
    tokens_ = std::move(tokens);
    waiting_ = true;
}

bool Guide::allows(llama_token token) noexcept {
    if (waiting_) return !stop_->stopped();
    if (llama_vocab_is_eog(vocab_, token)) return accepting();
    const uint32_t id = static_cast<uint32_t>(token);
    return library.matcher_validate_tokens(matcher_, &id, 1) == 1;
}

const uint32_t *Guide::mask() noexcept {
    const size_t bytes = mask_.size() * sizeof(uint32_t);
    return library.matcher_compute_mask_into(matcher_, mask_.data(), bytes) == 0 ? mask_.data() : nullptr;
}

bool Guide::accept(llama_token token) noexcept {
    if (llama_vocab_is_eog(vocab_, token)) return true;
    if (!waiting_) return consume(token);
    if (std::find(tokens_.begin(), tokens_.end(), token) != tokens_.end()) {
        waiting_ = false;
        return consume(token);
    }
    try {
        return look_for_word(token);
    } catch (const std::exception &) {
        return false;
    }
}

bool Guide::consume(llama_token token) noexcept {
    const uint32_t id = static_cast<uint32_t>(token);
    return library.matcher_consume_tokens(matcher_, &id, 1) == 0;
}

bool Guide::look_for_word(llama_token token) {
    tail_ += piece_of(vocab_, token, false);
    size_t found = std::string::npos, longest = 0;
    for (const auto &word : words_) {
        found = std::min(found, tail_.find(word));
        longest = std::max(longest, word.size());
    }
    if (found == std::string::npos) {
        if (tail_.size() > longest) tail_.erase(0, tail_.size() - longest);
        return true;
    }
    waiting_ = false;
    return accept_text(tail_.substr(found));
}

bool Guide::accept_text(const std::string &text) noexcept {
    std::string error;
    bool fits = false;
    guarded(error, [&] {
        const Watch watch(*stop_);
        const auto tokens = tokens_of(vocab_, text, true);
        fits = std::all_of(tokens.begin(), tokens.end(), [&](llama_token token) { return consume(token); });
    });
    return fits;
}

bool Guide::accepting() noexcept { return waiting_ || library.matcher_is_accepting(matcher_); }

bool Guide::complete() noexcept { return !waiting_ && library.matcher_is_stopped(matcher_) && !stop_->stopped(); }

std::vector<llama_token> Guide::forced() noexcept {
    if (waiting_) return {};
    constexpr size_t kMost = 64;
    uint32_t tokens[kMost];
    const int32_t n = library.matcher_compute_ff_tokens(matcher_, tokens, kMost);
    return n > 0 ? std::vector<llama_token>(tokens, tokens + n) : std::vector<llama_token>();
}

}  // namespace inferd
