/**
 * What the two forms of attention share: which slots a token sees, the pieces that long caches are
 * cut into, and the kernels.
 */
#ifndef PDVM_BACKEND_CPU_ATTENTION_H
#define PDVM_BACKEND_CPU_ATTENTION_H

#include "backend/cpu/cpu.h"

/** Queries that the batch form takes through the cache together. */
#define ATTN_QUERIES 64

/** Attention's kernels for one instruction set, and the activation function of the MLP. */
struct cpu_attention_kernels {
    /** out[i] = silu(gate[i]) * up[i]; out may be gate or up. */
    void (*silu_mul)(const float *gate, const float *up, int64_t n, float *out);
    /**
     * A step of the online softmax: scores[i] are multiplied by `scale` and become
     * exp(score - maximum so far); state is {maximum, sum} of what came before and is brought up to
     * date. Returns what older results are to be multiplied by.
     */
    float (*softmax)(float *scores, uint32_t n, float scale, float state[2]);
    /** Rows of the cache as floats, scales left out: keys transposed, out[c * KV_CHUNK + i]. */
    void (*keys[3])(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out);
    /** The same as they stand: out[i * d + c]. */
    void (*values[3])(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d, float *out);
    /** out[j * KV_CHUNK + i] = the sum of q[j * d + c] * keys[c][i], added as cpu_kernels.dot does,
     * for n queries and all KV_CHUNK keys. */
    void (*scores)(const float *q, uint32_t n, const float *keys, uint32_t d, float *out);
    /** acc[j * d + c] += p[j * KV_CHUNK + i] * values[i * d + c], for i from begin to end - 1 one
     * after another, and n queries. */
    void (*mix)(const float *p, uint32_t n, uint32_t begin, uint32_t end, const float *values,
                uint32_t d, float *acc);
};

/** Defines keys_SUFFIX and values_SUFFIX of a table by keys() and values() of its file. */
#define ATTENTION_ROWS(SUFFIX, TYPE)                                                               \
    static void keys_##SUFFIX(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d,       \
                              float *out) {                                                        \
        keys(rows, row_bytes, n, d, out, TYPE);                                                    \
    }                                                                                              \
    static void values_##SUFFIX(const uint8_t *rows, size_t row_bytes, uint32_t n, uint32_t d,     \
                                float *out) {                                                      \
        values(rows, row_bytes, n, d, out, TYPE);                                                  \
    }

extern const struct cpu_attention_kernels cpu_attention_scalar;
#ifdef PDVM_HAVE_AVX2
extern const struct cpu_attention_kernels cpu_attention_avx2;
#endif
#ifdef PDVM_HAVE_AVX512
extern const struct cpu_attention_kernels cpu_attention_avx512;
#endif

/** Slots in ascending order: one range, or two where a window in a ring wraps around. */
struct attn_spans {
    uint32_t begin[2];
    uint32_t end[2];
    int n;
};

/** The slots that a token of the pass sees. */
struct attn_spans attn_visible(const struct batch *batch, uint32_t window, uint32_t token);

/** The first piece that a pass reads, and how many, those of the new rows among them. */
void attn_pass_pieces(const struct batch *batch, uint32_t window, uint32_t *first, uint32_t *n);

static inline uint32_t attn_piece_of(uint32_t slot) {
    return slot / ATTN_PIECE;
}

/** The part of range i that lies within [first, last); false if there is none. */
static inline bool attn_cut(const struct attn_spans *s, int i, uint32_t first, uint32_t last,
                            uint32_t *begin, uint32_t *end) {
    *begin = s->begin[i] > first ? s->begin[i] : first;
    *end = s->end[i] < last ? s->end[i] : last;
    return *begin < *end;
}

/** Whether a token sees anything of a piece. */
bool attn_in_piece(const struct attn_spans *s, uint32_t piece);

/** Whether all that a token sees lies in one piece, which then writes the result. */
static inline bool attn_in_one_piece(const struct attn_spans *s) {
    return attn_piece_of(s->begin[0]) == attn_piece_of(s->end[s->n - 1] - 1);
}

/** Hugging Face's "rotate half": pairs are (i, i + head_dim / 2). */
void attn_rotate(const float *in, const float *cos, const float *sin, uint32_t head_dim,
                 float *out);

/** A head's place in the attention output, whose rows are padded to whole blocks. */
float *attn_out(const struct cpu_backend *b, uint32_t token, uint32_t head);

/**
 * Joins a head's results of the pieces that it sees, in their order: {maximum, sum, values[d]} of
 * piece p at partial + (p - first) * stride.
 */
void attn_merge(const struct attn_spans *spans, const float *partial, size_t stride, uint32_t first,
                uint32_t d, float *out);

/** Attention of a pass of several tokens, whose queries are rotated and whose rows are stored. */
void attn_batch(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                int worker, int n_workers);

/** Floats of a worker's memory for attn_batch, and of its partial results per piece. */
size_t attn_batch_floats(uint32_t head_dim);
size_t attn_batch_partial(uint32_t head_dim);

#endif
