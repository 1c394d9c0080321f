// Turns texts into the token sequences of an embedding or ranking model.
//
// A text becomes a sequence that begins and ends with the model's special tokens. A query and a document become one
// sequence. If the model file has a `rerank` template, it joins them. Otherwise the tokenizer's separators do, as in
// `[CLS] query [SEP] document [SEP]`. Only text of the template becomes control tokens, never text of a client.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "llama.h"

namespace inferd {

using Tokens = std::vector<llama_token>;

class EmbedInput {
  public:
    // Throws std::invalid_argument for a vocabulary for which llama.cpp's tokenizer would end the process.
    explicit EmbedInput(const llama_model *model) : vocab_(llama_model_get_vocab(model)) {
        const auto kind = llama_vocab_type(vocab_);
        if (kind == LLAMA_VOCAB_TYPE_NONE) throw std::invalid_argument("the model file has no vocabulary");
        const bool word_pieces = kind == LLAMA_VOCAB_TYPE_WPM;
        require(word_pieces || llama_vocab_get_add_bos(vocab_), llama_vocab_bos(vocab_), "first");
        require(word_pieces || llama_vocab_get_add_sep(vocab_), llama_vocab_sep(vocab_), "separator");
        require(llama_vocab_get_add_eos(vocab_), llama_vocab_eos(vocab_), "last");
        const char *source = llama_model_chat_template(model, "rerank");
        if (source) cut_template(source);
    }

    // The tokens of one text, with the special tokens. Throws std::exception.
    Tokens text(const std::string &text) const { return tokenize(text, true); }

    // The tokens of a query and a document as one sequence. Throws std::exception.
    Tokens pair(const std::string &query, const std::string &document) const {
        Tokens out;
        if (llama_vocab_get_add_bos(vocab_)) out.push_back(llama_vocab_bos(vocab_));
        if (pieces_.empty()) {
            const bool eos = llama_vocab_get_add_eos(vocab_), sep = llama_vocab_get_add_sep(vocab_);
            append(out, tokenize(query, false));
            if (eos) out.push_back(llama_vocab_eos(vocab_));
            if (sep) out.push_back(llama_vocab_sep(vocab_));
            append(out, tokenize(document, false));
            if (eos || sep) out.push_back(eos ? llama_vocab_eos(vocab_) : llama_vocab_sep(vocab_));
            return out;
        }
        for (const Piece &piece : pieces_) {
            if (!piece.text.empty()) append(out, tokenize(filled(piece.text, query, document), false));
            if (piece.control != LLAMA_TOKEN_NULL) out.push_back(piece.control);
        }
        if (llama_vocab_get_add_eos(vocab_)) out.push_back(llama_vocab_eos(vocab_));
        return out;
    }

  private:
    static void require(bool used, llama_token token, const char *name) {
        if (!used || token != LLAMA_TOKEN_NULL) return;
        throw std::invalid_argument(std::string("the vocabulary of the model file has no ") + name + " token");
    }

    // Text of the template up to the next control token, and that control token.
    struct Piece {
        std::string text;
        llama_token control = LLAMA_TOKEN_NULL;
    };

    // Splits the template at its control tokens. `pair` fills in the pieces between them and tokenises them as plain
    // text.
    void cut_template(const std::string &source) {
        size_t from = 0;
        for (const llama_token token : tokenize(source, false, true)) {
            if (!(llama_vocab_get_attr(vocab_, token) & LLAMA_TOKEN_ATTR_CONTROL)) continue;
            const std::string name = llama_vocab_get_text(vocab_, token);
            const size_t at = source.find(name, from);
            if (at == std::string::npos) continue;
            pieces_.push_back({source.substr(from, at - from), token});
            from = at + name.size();
        }
        pieces_.push_back({source.substr(from), LLAMA_TOKEN_NULL});
    }

    static std::string filled(const std::string &text, const std::string &query, const std::string &document) {
        static const std::string kQuery = "{query}", kDocument = "{document}";
        std::string out;
        size_t at = 0;
        while (at < text.size()) {
            if (text.compare(at, kQuery.size(), kQuery) == 0) {
                out += query;
                at += kQuery.size();
            } else if (text.compare(at, kDocument.size(), kDocument) == 0) {
                out += document;
                at += kDocument.size();
            } else {
                out += text[at++];
            }
        }
        return out;
    }

    Tokens tokenize(const std::string &text, bool add_special, bool parse_special = false) const {
        if (text.size() > INT32_MAX) throw std::length_error("the text is longer than 2 GiB");
        const auto length = static_cast<int32_t>(text.size());
        Tokens out(text.size() / 2 + 16);
        int32_t n = llama_tokenize(vocab_, text.data(), length, out.data(), out.size(), add_special, parse_special);
        if (n < 0 && n != INT32_MIN) {
            out.resize(-n);
            n = llama_tokenize(vocab_, text.data(), length, out.data(), out.size(), add_special, parse_special);
        }
        if (n < 0) throw std::length_error("the text has more tokens than can be counted");
        out.resize(n);
        return out;
    }

    static void append(Tokens &out, const Tokens &more) { out.insert(out.end(), more.begin(), more.end()); }

    const llama_vocab *vocab_;
    std::vector<Piece> pieces_;
};

}  // namespace inferd
