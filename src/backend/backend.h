/**
 * What executes a plan: the interface between the engine and the CPU, and any device to come.
 * A backend knows matrices, the plan's phases and KV rows; it knows nothing of files or models.
 */
#ifndef PDVM_BACKEND_BACKEND_H
#define PDVM_BACKEND_BACKEND_H

#include "base/error.h"
#include "base/notify.h"
#include "base/threads.h"
#include "mdcsr/mdcsr.h"

#include <stddef.h>
#include <stdint.h>

struct safetensors;
struct safetensors_writer;
struct backend;
struct backend_matrix; /**< a packed matrix, in the layout that the backend's kernels read */
struct backend_kv;     /**< the memory of one KV cache */

/** What a matrix is used for. */
enum matrix_use {
    MATRIX_PRODUCT, /**< matrix-vector products */
    MATRIX_LOOKUP   /**< single rows (the embedding) */
};

/** The phases of a token; docs/architecture.md says what each needs and leaves behind. */
enum phase_kind {
    PHASE_EMBED,   /**< x = embedding row */
    PHASE_QKV,     /**< q, k, v = W * rms_norm(x) (+ biases) */
    PHASE_ATTN,    /**< (norms and) RoPE on q and k, append k and v to the cache, attention */
    PHASE_OUT,     /**< x += W * attention output (+ bias) */
    PHASE_GATE_UP, /**< hidden = silu(Wg * rms_norm(x)) * (Wu * rms_norm(x)) */
    PHASE_DOWN,    /**< x += W * hidden */
    PHASE_HEAD     /**< logits = W * rms_norm(x) */
};

/** One phase: its weights. Unused pointers are NULL. */
struct phase {
    enum phase_kind kind;
    uint32_t layer;
    struct backend_matrix *w[3]; /**< q, k, v | out | gate, up | down | embedding or head */
    const float *norm;           /**< RMSNorm weights [hidden_size], owned by the plan's owner */
    const float *bias[3];        /**< as w: q, k, v | out; [rows of w] each */
    const float *head_norm[2]; /**< ATTN: RMSNorm weights [head_dim] of every head of q and of k */
    uint32_t window; /**< ATTN: a token sees itself and the window - 1 before it; 0: everything */
};

/** A model as the backend sees it: embed, then five phases per layer, then the head. */
struct plan {
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_vocab;
    float rms_norm_eps;
    const float *inv_freq; /**< RoPE frequencies [head_dim / 2] */
    float rope_factor;     /**< multiplies RoPE's cosines and sines: 1, but for YaRN */
    struct phase *phases;  /**< [2 + 5 * n_layers] */
    size_t n_phases;
    uint32_t max_batch; /**< most tokens of one pass */
};

/** Index of a layer's first phase; layer == n_layers gives the head. */
static inline size_t plan_phase(uint32_t layer) {
    return 1 + 5 * (size_t)layer;
}

/** One pass: some tokens at consecutive positions through a range of phases. */
struct batch {
    const int32_t *tokens; /**< [n_tokens]; checked against the vocabulary by the engine */
    uint32_t n_tokens;     /**< 1..max_batch */
    uint32_t position;     /**< RoPE position of the first token */
    uint32_t slot;         /**< KV slot of the first token; the others follow */
    uint32_t n_visible;    /**< slots that the first token sees, itself included; +1 per token */
    uint32_t n_sink;       /**< with n_dropped > 0: slots that stay in front of the window */
    uint32_t n_dropped;    /**< positions dropped between sinks and window */
    struct backend_kv *kv;
    float *x;           /**< [n_tokens, hidden_size]: activations in and out, or NULL */
    uint32_t n_logits;  /**< logits of the last n_logits tokens are wanted */
    float *logits;      /**< out [n_logits, n_vocab] */
    size_t first_phase; /**< phases [first_phase, end_phase) are run */
    size_t end_phase;
    pdvm_mode mode;
    bool short_activations; /**< passes of several tokens may take 8-bit activations */
    bool sync;              /**< wait for the device after every dispatch */
    bool graph;             /**< phases as one graph, where the backend has such a thing */
    uint64_t *n_dispatches; /**< raised by the number of dispatches */
    double *phase_seconds;  /**< [plan.n_phases] each raised by the time its phase took, the barrier
                                 behind it included; NULL: not measured */
    double *barrier_seconds; /**< with phase_seconds: raised by the mean time from the last worker's
                                  arrival at a barrier until one goes on, where that is known */
};

/** How a device chooses tokens: the steps of pdvm_sampler_options that it knows. */
struct backend_sampling {
    float temperature;    /**< 0: the likeliest, and nothing else counts */
    uint32_t top_k;       /**< 1..backend_ops.max_top_k */
    float top_p;          /**< 1: off */
    float min_p;          /**< 0: off */
    uint64_t random;      /**< state of pd_random: each token takes one number */
    const int32_t *stops; /**< [n_stops] tokens after which it chooses no more */
    uint32_t n_stops;     /**< at most backend_ops.max_stops */
};

/** The shape of a KV cache. */
struct kv_shape {
    uint32_t n_layers;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    pdvm_kv_type type_k;
    pdvm_kv_type type_v;
};

/** Bytes of one head's row in the given type, its scale included. */
size_t kv_head_row_bytes(pdvm_kv_type type, uint32_t head_dim);

/** A backend's functions. Those that return a status fill `err`. */
struct backend_ops {
    const char *name;
    /** Packs in `prepare`, not in load_matrix: canonical matrices must stay until then. */
    bool keeps_matrices;
    void (*destroy)(struct backend *b);
    /** One line for people: "cpu (avx512, 2 threads)". Owned by the backend. */
    const char *(*describe)(const struct backend *b);
    /**
     * Packs a checked matrix; for MATRIX_LOOKUP the backend may go on reading `m` until
     * free_matrix.
     */
    pdvm_status (*load_matrix)(struct backend *b, const struct mdcsr *m, enum matrix_use use,
                               struct backend_matrix **out, pdvm_error *err);
    void (*free_matrix)(struct backend *b, struct backend_matrix *m);
    /**
     * Names the layout of packed matrices, for files that keep them: no other layout has the same
     * name. NULL, as the two functions below: the backend cannot keep them.
     */
    const char *(*layout)(struct backend *b);
    /** Writes a packed matrix, tensor and metadata, under `name`. */
    pdvm_status (*save_matrix)(struct backend *b, const struct backend_matrix *m, const char *name,
                               struct safetensors_writer *file, pdvm_error *err);
    /**
     * Takes a matrix of that shape from a file that anybody may have written; its data are used
     * where they are, as long as the matrix lives. *n_entries: stored weights. PDVM_ERR_FORMAT:
     * it is missing, damaged or does not hold together.
     */
    pdvm_status (*map_matrix)(struct backend *b, const struct safetensors *file, const char *name,
                              int64_t rows, int64_t cols, struct backend_matrix **out,
                              int64_t *n_entries, pdvm_error *err);
    /** How the matrix is stored, for people: "int8 bitmap". NULL: one way for all matrices. */
    const char *(*matrix_layout)(const struct backend_matrix *m);
    /** Bytes that the matrix occupies, and that one product reads. */
    size_t (*matrix_bytes)(const struct backend_matrix *m);
    /** Splits the work and allocates everything that passes need. Called once. */
    pdvm_status (*prepare)(struct backend *b, const struct plan *plan, pdvm_error *err);
    /**
     * Goes over to another team, between passes; results stay the same. On failure the backend can
     * only be destroyed. NULL: the backend does its work without threads of the host.
     */
    pdvm_status (*set_threads)(struct backend *b, struct pd_threads *threads, pdvm_error *err);
    /**
     * Splits the work of one phase anew, after matrices of it were exchanged in the plan; between
     * passes. NULL: they cannot be exchanged.
     */
    void (*phase_changed)(struct backend *b, size_t phase);
    /** Runs a pass. The caller makes sure that passes don't overlap. */
    pdvm_status (*run)(struct backend *b, const struct batch *batch, pdvm_error *err);
    /** Whether `generate` can be called for a mode; NULL: never, and the next three are not used. */
    bool (*can_generate)(const struct backend *b, pdvm_mode mode);
    uint32_t max_top_k, max_stops;
    /**
     * Computes batch->tokens[0] and then the tokens that it chooses itself, batch->n_tokens in all
     * or fewer after a stop token: chosen[i] is chosen after step i, and the last one is not computed.
     * *n: steps. batch->logits gets those after the last step. Draws with 24 bits of the random numbers
     * in float32, so about once in a million tokens another one than the host's sampler.
     */
    pdvm_status (*generate)(struct backend *b, const struct batch *batch,
                            const struct backend_sampling *sampling, int32_t *chosen, uint32_t *n,
                            pdvm_error *err);
    /**
     * Measures, now, how many bytes a second the device's memory gives to a kernel that only reads.
     * NULL: it reads the host's memory.
     */
    pdvm_status (*read_bandwidth)(struct backend *b, double *bytes_per_second, pdvm_error *err);
    pdvm_status (*kv_create)(struct backend *b, const struct kv_shape *shape,
                             struct backend_kv **out, pdvm_error *err);
    void (*kv_free)(struct backend *b, struct backend_kv *kv);
    /** Makes sure that slots [0, n_slots) have memory. */
    pdvm_status (*kv_reserve)(struct backend *b, struct backend_kv *kv, uint32_t n_slots,
                              pdvm_error *err);
    /**
     * Copies the keys or values (`value`) of one layer's slots [0, n_slots) to or from
     * data[n_slots, n_kv_heads, kv_head_row_bytes]. Writing makes sure of memory, too.
     */
    pdvm_status (*kv_read)(struct backend *b, const struct backend_kv *kv, uint32_t layer,
                           bool value, uint32_t n_slots, uint8_t *data, pdvm_error *err);
    pdvm_status (*kv_write)(struct backend *b, struct backend_kv *kv, uint32_t layer, bool value,
                            uint32_t n_slots, const uint8_t *data, pdvm_error *err);
    /** Bytes of memory that the cache has now. */
    size_t (*kv_bytes)(const struct backend_kv *kv);
};

/** Implementations embed this as their first member. */
struct backend {
    const struct backend_ops *ops;
};

/** What a backend is created with. `threads` is shared with the loader and outlives it. */
struct backend_options {
    const char *kernels; /**< NULL or "auto": the best that the machine has */
    struct pd_threads *threads;
    uint64_t model_bytes;           /**< about what the weights will take; 0: unknown */
    const struct pd_notify *notify; /**< is told why "auto" is not a GPU; may be NULL */
};

/**
 * Creates a backend by name: "cpu", "cuda", or "auto", which is a GPU if there is one that the model
 * fits. Unknown names are PDVM_ERR_ARGUMENT listing them.
 */
pdvm_status backend_create(const char *name, const struct backend_options *options,
                           struct backend **out, pdvm_error *err);

/** The CPU backend. */
pdvm_status cpu_backend_create(const struct backend_options *options, struct backend **out,
                               pdvm_error *err);

/** The CUDA backend: PDVM_ERR_UNSUPPORTED says what is missing. */
pdvm_status cuda_backend_create(const struct backend_options *options, struct backend **out,
                                pdvm_error *err);

#endif
