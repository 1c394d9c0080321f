# The functions of llama.cpp's C API that the token loop calls.

from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport FILE
from libcpp cimport bool as cbool


cdef extern from "llama.h" nogil:
    ctypedef int32_t llama_token
    ctypedef int32_t llama_pos
    ctypedef int32_t llama_seq_id

    ctypedef struct llama_token_data:
        llama_token id
        float logit
        float p
    ctypedef struct llama_token_data_array:
        llama_token_data* data
        size_t size
        int64_t selected
        cbool sorted
    ctypedef struct llama_sampler:
        pass
    llama_sampler* llama_sampler_init_top_p(float p, size_t min_keep)
    void llama_sampler_apply(llama_sampler* sampler, llama_token_data_array* array)
    void llama_sampler_free(llama_sampler* sampler)

    ctypedef struct llama_vocab:
        pass
    ctypedef struct llama_model:
        pass
    ctypedef struct llama_context:
        pass
    ctypedef struct llama_adapter_lora:
        pass
    ctypedef struct llama_memory_i:
        pass
    ctypedef llama_memory_i* llama_memory_t
    ctypedef struct ggml_backend_buffer_type:
        pass
    ctypedef ggml_backend_buffer_type* ggml_backend_buffer_type_t
    ggml_backend_buffer_type_t ggml_backend_cpu_buffer_type()
    ctypedef struct ggml_backend_buffer:
        pass
    ctypedef ggml_backend_buffer* ggml_backend_buffer_t
    ggml_backend_buffer_t ggml_backend_buft_alloc_buffer(ggml_backend_buffer_type_t buft, size_t size)
    void* ggml_backend_buffer_get_base(ggml_backend_buffer_t buffer)
    void ggml_backend_buffer_clear(ggml_backend_buffer_t buffer, uint8_t value)
    void ggml_backend_buffer_free(ggml_backend_buffer_t buffer)

    ctypedef enum ggml_type "enum ggml_type":
        GGML_TYPE_F16
        GGML_TYPE_Q8_0
    ctypedef enum llama_flash_attn_type "enum llama_flash_attn_type":
        LLAMA_FLASH_ATTN_TYPE_AUTO
        LLAMA_FLASH_ATTN_TYPE_DISABLED
        LLAMA_FLASH_ATTN_TYPE_ENABLED

    ctypedef cbool (*llama_progress_callback)(float progress, void* user_data) noexcept nogil
    ctypedef cbool (*ggml_abort_callback)(void* data) noexcept nogil

    ctypedef struct llama_model_tensor_buft_override:
        const char* pattern
        ggml_backend_buffer_type_t buft

    ctypedef struct ggml_backend_device:
        pass
    ctypedef ggml_backend_device* ggml_backend_dev_t

    ctypedef enum llama_load_mode "enum llama_load_mode":
        LLAMA_LOAD_MODE_NONE
    ctypedef struct llama_model_params:
        ggml_backend_dev_t* devices
        cbool vocab_only
        const llama_model_tensor_buft_override* tensor_buft_overrides
        int32_t n_gpu_layers
        llama_load_mode load_mode
        cbool no_alloc
        llama_progress_callback progress_callback
        void* progress_callback_user_data

    ctypedef struct llama_context_params:
        uint32_t n_ctx
        uint32_t n_batch
        uint32_t n_ubatch
        uint32_t n_seq_max
        uint32_t n_outputs_max
        int32_t n_threads
        int32_t n_threads_batch
        llama_flash_attn_type flash_attn_type
        ggml_type type_k
        ggml_type type_v
        ggml_abort_callback abort_callback
        void* abort_callback_data
        cbool no_perf
        cbool kv_unified

    ctypedef struct llama_batch:
        int32_t n_tokens
        llama_token* token
        llama_pos* pos
        int32_t* n_seq_id
        llama_seq_id** seq_id
        int8_t* logits

    void llama_backend_init()
    int64_t llama_time_us()
    const char* llama_print_system_info()

    llama_model_params llama_model_default_params()
    llama_model* llama_model_load_from_file_ptr(FILE* file, llama_model_params params)
    llama_model* llama_model_load_from_splits(const char** paths, size_t n_paths, llama_model_params params)
    void llama_model_free(llama_model* model)
    const llama_vocab* llama_model_get_vocab(const llama_model* model)
    int32_t llama_model_n_ctx_train(const llama_model* model)
    int32_t llama_model_n_layer(const llama_model* model)
    cbool llama_model_is_recurrent(const llama_model* model)
    cbool llama_model_is_hybrid(const llama_model* model)
    int32_t llama_model_n_swa(const llama_model* model)
    int32_t llama_model_desc(const llama_model* model, char* buf, size_t buf_size)
    const char* llama_model_chat_template(const llama_model* model, const char* name)
    uint64_t llama_model_size(const llama_model* model)
    cbool llama_model_has_encoder(const llama_model* model)
    cbool llama_model_has_decoder(const llama_model* model)
    cbool llama_model_is_diffusion(const llama_model* model)
    int32_t llama_vocab_n_tokens(const llama_vocab* vocab)
    cbool llama_vocab_is_eog(const llama_vocab* vocab, llama_token token)
    int llama_vocab_get_attr(const llama_vocab* vocab, llama_token token)
    int LLAMA_TOKEN_ATTR_CONTROL
    int32_t llama_token_to_piece(
        const llama_vocab* vocab, llama_token token, char* buf, int32_t length, int32_t lstrip, cbool special)

    llama_adapter_lora* llama_adapter_lora_init_from_file_ptr(llama_model* model, FILE* file)
    uint64_t llama_adapter_get_alora_n_invocation_tokens(const llama_adapter_lora* adapter)
    int32_t llama_set_adapters_lora(
        llama_context* ctx, llama_adapter_lora** adapters, size_t n_adapters, float* scales)

    llama_context_params llama_context_default_params()
    llama_context* llama_init_from_model(llama_model* model, llama_context_params params)
    void llama_free(llama_context* ctx)
    uint32_t llama_n_ctx_seq(const llama_context* ctx)
    uint32_t llama_n_batch(const llama_context* ctx)
    void llama_set_n_threads(llama_context* ctx, int32_t n_threads, int32_t n_threads_batch)
    llama_memory_t llama_get_memory(const llama_context* ctx)
    cbool llama_memory_seq_rm(llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1)
    void llama_memory_seq_cp(
        llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1)
    llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id)

    llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max)
    void llama_batch_free(llama_batch batch)
    void llama_synchronize(llama_context* ctx)
    float* llama_get_logits_ith(llama_context* ctx, int32_t i)

    size_t llama_state_seq_get_size_ext(llama_context* ctx, llama_seq_id seq_id, uint32_t flags)
    size_t llama_state_seq_get_data_ext(
        llama_context* ctx, uint8_t* dst, size_t size, llama_seq_id seq_id, uint32_t flags)
    size_t llama_state_seq_set_data_ext(
        llama_context* ctx, const uint8_t* src, size_t size, llama_seq_id seq_id, uint32_t flags)
