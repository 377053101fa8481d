/**
 * Calibration: a text streamed through a model layer by layer, and the second moments of every
 * matrix's inputs on the way.
 *
 * The residual streams of all windows are kept in float32; a layer is run in four stages, and the
 * inputs of a stage come from the matrices as they stand: earlier layers and earlier stages of the
 * same layer are pruned by then ("true sequential" in the terms of GPTQ). A stage's result is kept
 * too, so that no product is computed twice. Memory: tokens * (hidden_size + max(n_heads *
 * head_dim, intermediate_size)) * 4 bytes, in a temporary file if that is more than half of the
 * machine's, one layer's weights, and one stage's Hessian.
 */
#ifndef PDVM_COMPRESS_CALIBRATE_H
#define PDVM_COMPRESS_CALIBRATE_H

#include "base/notify.h"
#include "base/scratch.h"
#include "base/threads.h"
#include "compress/layer.h"
#include "compress/solver.h"
#include "model/source.h"

/** Which text, and how much of it. */
struct calibration_options {
    const char *path; /**< the text, UTF-8; names of special tokens in it are these tokens */
    int64_t n_tokens; /**< most tokens to use; 0: CALIBRATION_TOKENS */
    int64_t seq;      /**< tokens of a window; 0: CALIBRATION_SEQ or the model's context */
    /**
     * Where the large products are computed: "cpu", "cuda", or NULL and "auto": on a GPU, if there is one
     * with cuBLAS and memory enough. Attention, norms and factorisations are the CPU's.
     */
    const char *backend;
};

#define CALIBRATION_TOKENS ((int64_t)262144)
#define CALIBRATION_SEQ ((int64_t)2048)

/** Parts of a layer, each with the matrices that share its inputs. */
enum calibration_stage {
    CALIBRATION_QKV,     /**< q, k, v: rms_norm(x) */
    CALIBRATION_OUT,     /**< o: the attention's output */
    CALIBRATION_GATE_UP, /**< gate, up: rms_norm(x + o) */
    CALIBRATION_DOWN,    /**< down: silu(gate) * up */
    CALIBRATION_N_STAGES
};

/** Second moments of a stage's inputs. Zero-initialise, free with calibration_moments_free. */
struct calibration_moments {
    double *diagonal;              /**< [cols] diag(H) */
    struct solver_hessian hessian; /**< with `h` NULL if only the diagonal was asked for */
};

/** A text on its way through a model. Zero-initialise before use. */
struct calibration {
    const struct model_config *config;
    const struct blas *blas;
    struct pd_threads *threads;
    struct pd_notify notify;
    int32_t *ids;      /**< [n_windows, seq] */
    int64_t n_windows; /**< at least 1 */
    int64_t seq;
    int64_t n_distinct;           /**< different tokens among them */
    uint64_t text_hash;           /**< of ids and shape */
    struct matmul_device *device; /**< NULL: products are the CPU's */
    struct layer_pass pass;
    struct pd_scratch x;     /* [n_windows, seq, hidden_size] residual streams */
    struct pd_scratch inner; /* [n_windows, seq, q_cols or intermediate_size] */
    float *group;            /* [n_group, seq, hidden_size] normed inputs of some windows */
    double *squares;         /* [n_group, widest] sums of their squares */
    float *tiles;            /* [workers, tile, tile] of a Hessian */
    int64_t tile;            /* rows and columns of a piece, at most */
    int64_t n_group;
    double done, total; /* work in multiplications, for the progress */
};

/**
 * Reads and tokenises the text and cuts windows out of it, evenly spaced over all of it.
 * PDVM_ERR_ARGUMENT for texts shorter than a window or of hardly any different tokens;
 * PDVM_ERR_UNSUPPORTED without OpenBLAS or tokenizer, and for a backend that was asked for and cannot be
 * had. Large memory goes beside the file `beside`. With `full`, whole Hessians will be asked for.
 */
pdvm_status calibration_open(struct model_source *source, const struct calibration_options *options,
                             bool full, struct pd_threads *threads, const struct pd_notify *notify,
                             const char *beside, struct calibration *out, pdvm_error *err);

/** Frees it. */
void calibration_free(struct calibration *c);

/** Puts the tokens' embeddings into the residual streams; `embedding` [n_vocab, hidden_size]. */
void calibration_embed(struct calibration *c, const struct mdcsr *embedding);

/** Columns of a stage's matrices. */
int64_t calibration_cols(const struct calibration *c, enum calibration_stage stage);

/**
 * Runs a stage of a layer up to the inputs of its matrices, and adds up their moments; the whole
 * Hessian if `full`. Stages come in order; the matrices of the stages before must be final. `out`
 * may be NULL. PDVM_ERR_FORMAT names the place of an input that is not finite. Progress is reported
 * and may cancel.
 */
pdvm_status calibration_stage(struct calibration *c, const struct layer_weights *w,
                              enum calibration_stage stage, bool full,
                              struct calibration_moments *out, pdvm_error *err);

/** Ends a layer: adds the result of the last stage to the residual streams. */
pdvm_status calibration_end_layer(struct calibration *c, const struct layer_weights *w,
                                  pdvm_error *err);

/** Multiplications that a layer's four stages and its end take; with `full`, Hessians too. */
double calibration_layer_work(const struct calibration *c, bool full);

/** Adds to the work done and reports progress, stage "calibrating"; PDVM_ERR_CANCELLED. */
pdvm_status calibration_progress(struct calibration *c, double work, pdvm_error *err);

/** Frees the moments. */
void calibration_moments_free(struct calibration_moments *m);

#endif
