/** The engine's insides: what a model and a session are made of. */
#ifndef PDVM_ENGINE_ENGINE_H
#define PDVM_ENGINE_ENGINE_H

#include "backend/backend.h"
#include "base/notify.h"
#include "engine/kv_cache.h"
#include "model/source.h"
#include "model/tokenizer.h"

#include <pthread.h>

/** Most tokens of one pass: enough that a prompt reads the weights rarely. */
#define ENGINE_MAX_BATCH 256

/** An open model: immutable once opened, but for the passes that take turns. */
struct pdvm_model {
    struct pd_notify notify;
    struct model_source *source;
    struct model_config config;
    struct tokenizer *tokenizer; /* NULL: the source has none */
    enum mdcsr_values values;    /* for sources that hold float weights */
    struct pd_threads *threads;
    struct backend *backend;
    struct plan plan;
    struct backend_matrix **matrices; /* [n_matrices] owned; the plan points to them */
    size_t n_matrices;
    bool cache_packed;          /* packed matrices are kept in a file */
    struct safetensors *packed; /* the file that some of them are mapped from; NULL: none */
    bool packed_stale;          /* it could not give all of them */
    struct mdcsr *canonical; /* [n_canonical] what a backend packs in `prepare`; NULL otherwise */
    size_t n_canonical;
    struct mdcsr embedding; /* looked up row by row, so it stays in canonical form */
    struct backend_matrix *lookup;
    float **vectors; /* [tensors_count] norms and biases by tensors_index; NULL for matrices */
    float *inv_freq;
    pthread_mutex_t pass; /* held while the backend runs: it has one set of activations */
    pdvm_model_info info;
};

/** Names of the execution modes, NULL behind the last: "token", ... */
extern const char *const engine_mode_names[];

/** pdvm_model_options_default with these callbacks. */
pdvm_model_options model_options_with(const struct pd_notify *notify);

/** PDVM_ERR_UNSUPPORTED for a model without a tokenizer. */
pdvm_status model_need_tokenizer(const pdvm_model *m, pdvm_error *err);

/**
 * pdvm_model_open from an open source, which the model then owns; it is closed on failure, too.
 * For sources that are not at a path.
 */
pdvm_status model_open_source(struct model_source *source, const pdvm_model_options *options,
                              pdvm_model **out, pdvm_error *err);

/**
 * Goes over to n worker threads, 0: one per available core, without loading anything again. Not
 * while a pass runs. On failure the model can only be closed.
 */
pdvm_status model_set_threads(pdvm_model *m, int n, pdvm_error *err);

/**
 * Exchanges a matrix of a layer (q, k, v, o, gate, up or down) for *matrix, which the model's backend
 * has loaded and which then is the one that was there: for measuring what a single matrix is worth.
 * Not while a pass runs. The model's info stays as it is. PDVM_ERR_UNSUPPORTED if the backend can't.
 */
pdvm_status model_exchange_matrix(pdvm_model *m, enum tensor_role role, uint32_t layer,
                                  struct backend_matrix **matrix, pdvm_error *err);

/** A sequence of tokens with its cache. */
struct pdvm_session {
    pdvm_model *model;
    pdvm_session_options options;
    struct kv_cache cache;
    int32_t *tokens; /* [n_tokens]; -1: a position computed from raw activations */
    size_t n_tokens;
    size_t token_capacity;
    float *logits; /* [n_logit_rows, n_vocab] */
    uint32_t n_logit_rows;
    bool logits_valid;      /* of the last token, in the first row */
    double *phase_seconds;  /* borrowed, NULL by default: see struct batch */
    double barrier_seconds; /* sum over the timed passes, as in struct batch */
    bool sync, graph;       /* for measurements: see struct batch */
    pdvm_session_stats stats;
};

/**
 * Receives logits[n_vocab] after the token at `index` of a forward pass's input. A status other
 * than PDVM_OK ends the pass with that status.
 */
typedef pdvm_status (*session_logits_fn)(void *user, size_t index, const float *logits,
                                         pdvm_error *err);

/**
 * Appends n >= 1 tokens and computes them in batches. With `fn`, it is called for every token in
 * order; the session's own logits are those of the last token either way.
 */
pdvm_status session_forward(pdvm_session *s, const int32_t *tokens, size_t n, session_logits_fn fn,
                            void *user, pdvm_error *err);

/**
 * Appends `token` and up to n - 1 tokens that the backend chooses after it: chosen[i] is chosen after
 * step i, the last one of the *done is not appended. Logits are those of the last step. Only where
 * session_can_generate; PDVM_ERR_RANGE if the context is full, fewer steps if it gets full.
 */
pdvm_status session_generate(pdvm_session *s, int32_t token, uint32_t n,
                             const struct backend_sampling *sampling, int32_t *chosen,
                             uint32_t *done, pdvm_error *err);

/** Whether the session's backend can choose tokens in the session's mode. */
bool session_can_generate(const pdvm_session *s);

struct safetensors;

/** pdvm_session_load from an open file. */
pdvm_status session_load_from(pdvm_session *s, const struct safetensors *st, pdvm_error *err);

/** Builds the plan over the model's matrices and vectors: see plan.c for the order of the former. */
pdvm_status plan_build(struct pdvm_model *m, pdvm_error *err);

/** Frees what plan_build allocated. */
void plan_free(struct plan *plan);

#endif
