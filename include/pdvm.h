/**
 * pdvm: runs Llama-family language models with sparse, quantised weights.
 *
 *     pdvm_error err;
 *     pdvm_model *model;
 *     pdvm_session *session;
 *     pdvm_sampler *sampler;
 *     if (pdvm_model_open("tales.pdvm", NULL, &model, &err) != PDVM_OK) {
 *         fprintf(stderr, "%s\n", err.message);
 *         return 1;
 *     }
 *     pdvm_session_create(model, NULL, &session, &err);
 *     pdvm_sampler_create(NULL, &sampler, &err);
 *
 *     int32_t tokens[512];
 *     size_t n;
 *     pdvm_tokenize(model, "Once upon a time", 16, 0, tokens, 512, &n, &err);
 *     pdvm_session_sync(session, tokens, n, &err);
 *     for (int i = 0; i < 100; i++) {
 *         size_t n_vocab, len;
 *         int32_t token;
 *         char text[256];
 *         const float *logits = pdvm_session_logits(session, &n_vocab);
 *         pdvm_sampler_sample(sampler, logits, n_vocab, &token, &err);
 *         if (pdvm_model_is_end(model, token)) break;
 *         pdvm_detokenize(model, &token, 1, text, sizeof text, &len, &err);
 *         fwrite(text, 1, len, stdout);
 *         if (pdvm_session_step(session, token, &err) != PDVM_OK) break;
 *     }
 *
 * (Error checks left out for brevity; examples/ has a complete program.)
 *
 * Conventions. Handles are opaque; whoever creates one frees it. Functions that can fail
 * return a pdvm_status and fill the caller's pdvm_error (which may be NULL) with a message
 * for people. Option structs come from their `_default` functions; NULL means the defaults.
 * Strings are UTF-8; lengths are in bytes. Token ids are int32_t, positions count from 0.
 *
 * Threads. A model may be shared by any number of threads, each with sessions of its own;
 * one session or sampler is used by one thread at a time. Passes of different sessions over
 * one model take turns on the model's worker threads.
 */
#ifndef PDVM_H
#define PDVM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PDVM_API __attribute__((visibility("default")))
#else
#define PDVM_API
#endif

/** Version of this header; pdvm_version() tells the library's. */
#define PDVM_VERSION "0.1.0"

/** What kind of thing went wrong. PDVM_OK is 0 and the only success. */
typedef enum pdvm_status {
    PDVM_OK = 0,
    PDVM_ERR_ARGUMENT,    /**< the caller passed something that makes no sense */
    PDVM_ERR_MEMORY,      /**< an allocation failed */
    PDVM_ERR_IO,          /**< the operating system refused (missing file, full disk, ...) */
    PDVM_ERR_FORMAT,      /**< a file's contents are malformed or contradict themselves */
    PDVM_ERR_UNSUPPORTED, /**< well-formed, but not something this version can run */
    PDVM_ERR_RANGE,       /**< a token, position or context length is out of range */
    PDVM_ERR_CANCELLED    /**< a progress callback asked to stop */
} pdvm_status;

/** An error for people: which file, which field, what to do. Filled only on failure. */
typedef struct pdvm_error {
    pdvm_status status;
    char message[1024];
} pdvm_error;

typedef struct pdvm_model pdvm_model;
typedef struct pdvm_session pdvm_session;
typedef struct pdvm_sampler pdvm_sampler;

/** The library's version, e.g. "0.1.0". Static storage. */
PDVM_API const char *pdvm_version(void);

/** Short English name of a status, e.g. "format error". Static storage. */
PDVM_API const char *pdvm_status_name(pdvm_status status);

/** Severity of a log message. */
typedef enum pdvm_log_level { PDVM_LOG_DEBUG, PDVM_LOG_INFO, PDVM_LOG_WARN } pdvm_log_level;

/** Receives one log line (no newline at its end). */
typedef void (*pdvm_log_fn)(void *user, pdvm_log_level level, const char *message);

/**
 * Receives progress of something that takes long: `stage` says what ("loading", ...),
 * `fraction` is in 0..1. Called from one thread at a time, many times a second.
 * Return false to cancel: the running call then fails with PDVM_ERR_CANCELLED.
 */
typedef bool (*pdvm_progress_fn)(void *user, const char *stage, double fraction);

/* ---- models ---------------------------------------------------------------------------- */

/** How to open a model. */
typedef struct pdvm_model_options {
    int n_threads;       /**< worker threads, the caller included; 0: one per available core */
    const char *backend; /**< "cpu", "cuda", or "auto" (also NULL): a GPU if there is one that the
                              model fits, and the CPU otherwise */
    const char
        *kernels; /**< CPU instruction set: "auto", "scalar", "neon", "avx2", "avxvnni", "avx512",
                            "amx"; NULL: "auto" */
    const char *values; /**< for directories of float weights: "f32", "bf16", "f16", "int8", "lut8",
                              "lut4", or "source", the source's own precision; NULL: "int8". A
                              .pdvm file has its own. */
    bool cache_packed;  /**< keep the weights as they are packed for this machine's kernels in a
                              file beside the model, or in the user's cache directory where that
                              cannot be written, and map them from there the next time */
    pdvm_progress_fn progress;
    void *progress_user;
    pdvm_log_fn log;
    void *log_user;
} pdvm_model_options;

/** The defaults: all cores, automatic backend, no callbacks. */
PDVM_API pdvm_model_options pdvm_model_options_default(void);

/** Facts about an open model. Strings live as long as the model. */
typedef struct pdvm_model_info {
    const char *architecture; /**< "llama", "mistral", "qwen2", "qwen3", "phi3" */
    const char *backend;      /**< backend and kernels in use, e.g. "cpu (avx512, 2 threads)" */
    uint32_t n_layers;
    uint32_t hidden_size;       /**< width of the residual stream */
    uint32_t intermediate_size; /**< width of the gated MLP */
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_vocab;
    uint32_t max_context;  /**< longest context that the model was trained for */
    uint64_t n_weights;    /**< weights in all matrices, zeros counted in */
    uint64_t n_nonzeros;   /**< stored weights */
    uint64_t stored_bytes; /**< bytes of the weights as the backend holds them */
    uint64_t token_bytes;  /**< bytes of weights read for one decoded token */
    uint64_t fingerprint;  /**< changes whenever the weights, shapes or codings do */
} pdvm_model_info;

/**
 * Opens a `.pdvm` file, a GGUF file or a Hugging Face model directory (the latter two are converted
 * in memory, see pdvm_model_options.values). Progress stage: "loading". `*out` is freed by pdvm_model_close.
 */
PDVM_API pdvm_status pdvm_model_open(const char *path, const pdvm_model_options *options,
                                     pdvm_model **out, pdvm_error *err);

/** Frees a model. All of its sessions must have been freed before. NULL is allowed. */
PDVM_API void pdvm_model_close(pdvm_model *model);

/** Facts about the model. */
PDVM_API void pdvm_model_get_info(const pdvm_model *model, pdvm_model_info *info);

/** Whether `token` ends a text (end of sequence, end of turn). */
PDVM_API bool pdvm_model_is_end(const pdvm_model *model, int32_t token);

/* ---- text and tokens ------------------------------------------------------------------- */

/** Flags of pdvm_tokenize. */
enum {
    PDVM_TOKENIZE_ADD_SPECIAL = 1,  /**< add what the model wants around a text (BOS, ...) */
    PDVM_TOKENIZE_PARSE_SPECIAL = 2 /**< "<|endoftext|>" in the text is the token, not letters */
};

/**
 * Turns UTF-8 text of `len` bytes into token ids. `*n` is set to the number of tokens of the
 * whole text, even when that is more than `capacity`; then PDVM_ERR_RANGE is returned and
 * `tokens` holds the first `capacity`. Invalid UTF-8 is PDVM_ERR_ARGUMENT and names the offset.
 */
PDVM_API pdvm_status pdvm_tokenize(const pdvm_model *model, const char *text, size_t len,
                                   unsigned flags, int32_t *tokens, size_t capacity, size_t *n,
                                   pdvm_error *err);

/**
 * Turns tokens into bytes. One token's bytes need not be whole UTF-8 characters. If the first is
 * the token that begins a text (PDVM_TOKENIZE_ADD_SPECIAL adds it), the space is left out that
 * SentencePiece-like tokenizers put before a text; other tokens may go on with one. `*len` is the
 * length of the whole text; PDVM_ERR_RANGE if that is more than `capacity`, or for a token
 * outside the vocabulary. The text is not terminated by a zero byte.
 */
PDVM_API pdvm_status pdvm_detokenize(const pdvm_model *model, const int32_t *tokens, size_t n,
                                     char *text, size_t capacity, size_t *len, pdvm_error *err);

/* ---- sessions -------------------------------------------------------------------------- */

/** How the rows of the KV cache are stored. */
typedef enum pdvm_kv_type { PDVM_KV_F32, PDVM_KV_F16, PDVM_KV_INT8 } pdvm_kv_type;

/**
 * How the phases of a token are dispatched to the backend's workers. All modes give
 * bit-identical results on one device.
 */
typedef enum pdvm_mode {
    PDVM_MODE_TOKEN,  /**< one dispatch for all layers and the head */
    PDVM_MODE_LAYER,  /**< one dispatch per layer */
    PDVM_MODE_PHASE,  /**< one dispatch per phase, five per layer */
    PDVM_MODE_UNFUSED /**< six dispatches per layer: norm, QKV, RoPE, attention, out, MLP */
} pdvm_mode;

/** How to make a session. */
typedef struct pdvm_session_options {
    uint32_t n_ctx; /**< most tokens the cache may hold; 0: the model's max_context */
    pdvm_kv_type type_k;
    pdvm_kv_type type_v;
    pdvm_mode mode;
    bool rolling;     /**< when the cache is full, drop the oldest tokens instead of failing */
    uint32_t n_sink;  /**< with rolling: first tokens that are always kept (attention sinks) */
    uint32_t n_batch; /**< most prompt tokens per pass; 0: the default */
    uint32_t prompt_activations; /**< bits of the activations where several tokens are computed
                                      together: 16 (or 0), or 8, which is faster and less accurate */
    pdvm_progress_fn progress;   /**< stage "prompt": called while a long prompt is processed */
    void *progress_user;
} pdvm_session_options;

/** The defaults: the model's context, f16 cache, mode token, not rolling, 4 sinks. */
PDVM_API pdvm_session_options pdvm_session_options_default(void);

/** Makes a session: one KV cache on the model. Its memory grows with the tokens it holds. */
PDVM_API pdvm_status pdvm_session_create(pdvm_model *model, const pdvm_session_options *options,
                                         pdvm_session **out, pdvm_error *err);

/** Frees a session. NULL is allowed. */
PDVM_API void pdvm_session_free(pdvm_session *session);

/**
 * Makes the cache hold exactly `tokens[0..n)` and the logits those after the last of them.
 * The longest prefix that is already in the cache is kept and not computed again. n >= 1.
 * Fails with PDVM_ERR_RANGE for tokens outside the vocabulary and for more than n_ctx tokens
 * (unless rolling). After a failure or a cancellation the cache holds a valid prefix.
 */
PDVM_API pdvm_status pdvm_session_sync(pdvm_session *session, const int32_t *tokens, size_t n,
                                       pdvm_error *err);

/** Appends one token and computes the logits after it. */
PDVM_API pdvm_status pdvm_session_step(pdvm_session *session, int32_t token, pdvm_error *err);

/**
 * The logits after the last token, `*n_vocab` of them; NULL before the first token and after
 * pdvm_session_rewind. Owned by the session, valid until its next call.
 */
PDVM_API const float *pdvm_session_logits(const pdvm_session *session, size_t *n_vocab);

/**
 * Forgets all tokens after the first `n`. Logits are then gone until the next sync or step.
 * PDVM_ERR_RANGE if a rolling cache has dropped tokens that the shorter text would need.
 */
PDVM_API pdvm_status pdvm_session_rewind(pdvm_session *session, size_t n, pdvm_error *err);

/** The tokens so far, `*n` of them (dropped ones included). Owned by the session. */
PDVM_API const int32_t *pdvm_session_tokens(const pdvm_session *session, size_t *n);

/** Writes the session (tokens, cache, logits) to a file, atomically. */
PDVM_API pdvm_status pdvm_session_save(const pdvm_session *session, const char *path,
                                       pdvm_error *err);

/**
 * Replaces the session's contents by a saved file's. PDVM_ERR_FORMAT if it is damaged,
 * PDVM_ERR_UNSUPPORTED if it belongs to another model or to other cache options; the
 * session is then as it was.
 */
PDVM_API pdvm_status pdvm_session_load(pdvm_session *session, const char *path, pdvm_error *err);

/** Counters of a session since its creation. */
typedef struct pdvm_session_stats {
    uint64_t n_computed;   /**< tokens computed (prompt and steps) */
    uint64_t n_reused;     /**< tokens that sync found in the cache */
    uint64_t n_dispatches; /**< times the backend's workers were dispatched */
    uint64_t kv_bytes;     /**< memory of the KV cache now */
} pdvm_session_stats;

/** Reads the counters. */
PDVM_API void pdvm_session_get_stats(const pdvm_session *session, pdvm_session_stats *stats);

/**
 * Runs layer `layer` on the raw activation of one token at the session's next position: reads
 * and overwrites x[hidden_size] and writes that layer's key and value to the cache. The position
 * does not move: run all layers in order, or call pdvm_execute_model. (The PDVM document's
 * execute_layer.)
 */
PDVM_API pdvm_status pdvm_execute_layer(pdvm_session *session, uint32_t layer, float *x,
                                        pdvm_error *err);

/**
 * Runs all layers on the raw activation x[hidden_size] of one token, in place, and moves the
 * session one position on. The result is the residual stream before the final norm. The token is
 * recorded as -1, so sync never takes it for a prefix. (The PDVM document's execute_model.)
 */
PDVM_API pdvm_status pdvm_execute_model(pdvm_session *session, float *x, pdvm_error *err);

/* ---- sampling and generation ----------------------------------------------------------- */

/** Added to one token's logit before anything else; -INFINITY bans it. */
typedef struct pdvm_logit_bias {
    int32_t token;
    float bias;
} pdvm_logit_bias;

/**
 * How to choose the next token. The steps run in this order: logit bias, penalties, top-k,
 * typical, top-p, min-p, temperature, then a draw. Names and meanings are llama.cpp's.
 */
typedef struct pdvm_sampler_options {
    float temperature;       /**< 0: greedy */
    int32_t top_k;           /**< keep the k likeliest; 0: all */
    float top_p;             /**< nucleus (Holtzman et al. 2019); 1: off */
    float min_p;             /**< keep p >= min_p * p(likeliest); 0: off */
    float typical_p;         /**< locally typical sampling (Meister et al. 2022); 1: off */
    float repeat_penalty;    /**< divides positive, multiplies negative logits; 1: off */
    int32_t repeat_last_n;   /**< tokens that the penalties look back on; -1: all; 0: none */
    float frequency_penalty; /**< times the count of the token; 0: off */
    float presence_penalty;  /**< once if the token occurred; 0: off */
    uint64_t seed;           /**< the same seed and options give the same choices */
    const pdvm_logit_bias *logit_bias; /**< copied */
    size_t n_logit_bias;
} pdvm_sampler_options;

/** llama.cpp's defaults: temperature 0.8, top-k 40, top-p 0.95, min-p 0.05, no penalties. */
PDVM_API pdvm_sampler_options pdvm_sampler_options_default(void);

/** Makes a sampler. Values out of range are PDVM_ERR_ARGUMENT and named. */
PDVM_API pdvm_status pdvm_sampler_create(const pdvm_sampler_options *options, pdvm_sampler **out,
                                         pdvm_error *err);

/** Frees a sampler. NULL is allowed. */
PDVM_API void pdvm_sampler_free(pdvm_sampler *sampler);

/** Tells the sampler of a token that it did not choose (the prompt), for the penalties. */
PDVM_API pdvm_status pdvm_sampler_accept(pdvm_sampler *sampler, int32_t token, pdvm_error *err);

/** Forgets the tokens so far and restarts the random numbers from the seed. */
PDVM_API void pdvm_sampler_reset(pdvm_sampler *sampler);

/**
 * Chooses a token from logits[n_vocab] and remembers it for the penalties. NaN logits or no
 * finite logit at all are PDVM_ERR_ARGUMENT.
 */
PDVM_API pdvm_status pdvm_sampler_sample(pdvm_sampler *sampler, const float *logits, size_t n_vocab,
                                         int32_t *token, pdvm_error *err);

/** Why pdvm_generate stopped. */
typedef enum pdvm_stop_reason {
    PDVM_STOP_LENGTH,  /**< n_predict tokens were made */
    PDVM_STOP_END,     /**< the model ended the text */
    PDVM_STOP_STRING,  /**< a stop string appeared (it is not part of the output) */
    PDVM_STOP_CONTEXT, /**< the context is full */
    PDVM_STOP_CALLBACK /**< the callback returned false */
} pdvm_stop_reason;

/** Receives generated text: always whole UTF-8 characters. Return false to stop. */
typedef bool (*pdvm_text_fn)(void *user, const char *text, size_t len);

/** How long to generate and where to stop. */
typedef struct pdvm_generate_options {
    int64_t n_predict;       /**< most tokens; negative: until the end or a full context */
    const char *const *stop; /**< stop strings, zero-terminated, matched across tokens */
    size_t n_stop;
    bool ignore_end;    /**< go on after end-of-text tokens */
    const int32_t *end; /**< tokens that end the text beside the model's (end of a turn) */
    size_t n_end;
} pdvm_generate_options;

/**
 * Generates from a session whose logits are valid (after sync or step): samples, streams the
 * text through `on_text` (may be NULL) and steps. Text that may be the start of a stop string is
 * held back until that is decided; bytes that are not valid UTF-8 come out as U+FFFD.
 * `*n_generated` and `*reason` may be NULL.
 */
PDVM_API pdvm_status pdvm_generate(pdvm_session *session, pdvm_sampler *sampler,
                                   const pdvm_generate_options *options, pdvm_text_fn on_text,
                                   void *user, size_t *n_generated, pdvm_stop_reason *reason,
                                   pdvm_error *err);

#ifdef __cplusplus
}
#endif

#endif
