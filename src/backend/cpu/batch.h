/**
 * Products of a batch of tokens: rows of weights are expanded once to a panel that stays in the
 * cache, and the panel is multiplied with all tokens, 16 at a time.
 *
 * The results equal those of the products for one token bit for bit: integer sums are exact, and
 * the float steps are the same in the same order.
 */
#ifndef PDVM_BACKEND_CPU_BATCH_H
#define PDVM_BACKEND_CPU_BATCH_H

#include "backend/cpu/cpu.h"

/** Tokens that are multiplied at once: a token tile. */
#define BATCH_TOKENS 16

/** Panels hold whole multiples of so many rows, the last ones perhaps meaningless. */
#define PANEL_STEP 32

/** Columns whose exact sums of 8-bit products fit 32 bits: 65536 * 128 * 128 = 2^30. */
#define BATCH_SEGMENT 65536

/** Expanded rows of a matrix. */
struct cpu_panel {
    const struct cpu_matrix *m;
    int64_t tile0; /* the first tile */
    int64_t rows;  /* that exist; memory goes up to the next multiple of PANEL_STEP */
    /* Integer codes, zeros included, as cpu_kernels.expand writes them: tile after tile, `stride`
     * bytes apart, [cols / 4][16 rows][4]. Or: */
    const int8_t *codes;
    const float *values; /* float kinds: [rows][stride], scales multiplied in */
    int64_t stride;
};

/** A token tile's activations as the kernels take them. */
struct cpu_token_tile {
    const void *packed;    /* by cpu_batch_kernels.pack */
    const void *next;      /* what comes after it, to be fetched meanwhile; or NULL */
    int digits;            /* 2: 16-bit activations; 1: 8-bit ones */
    const float *scales;   /* [16] of the tokens */
    const float *const *x; /* [n] float activations instead, for float kinds */
    uint32_t n;            /* tokens, 1..16; the packed ones behind them are zero */
};

/** Batch kernels for one instruction set. */
struct cpu_batch_kernels {
    /** From so many tokens on a batch is faster than the tokens one by one. */
    uint32_t min_tokens;
    /**
     * Packs a vector of n_blocks * 64 integers as token t of `out`, which has batch_tile_bytes; all
     * zero is a packed zero. With digits == 1 all values are within -127..127.
     */
    void (*pack)(const int16_t *q, int64_t n_blocks, int digits, uint32_t t, void *out);
    /** Brings expanded codes into the kernel's own form, in place; NULL: they are in it. */
    void (*arrange)(int8_t *codes, int64_t size);
    /** out[t * stride + r] for the panel's existing rows r and the tile's tokens t. */
    void (*integers)(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                     int64_t stride);
    void (*floats)(const struct cpu_panel *panel, const struct cpu_token_tile *tokens, float *out,
                   int64_t stride);
};

/** Bytes of 16 packed vectors: 2 per activation, and for each 32 columns the sums of 2 digits. */
static inline size_t batch_tile_bytes(int64_t n_blocks) {
    size_t sums = 2 * BATCH_TOKENS * sizeof(int32_t);
    return (size_t)n_blocks * (2 * BATCH_TOKENS * BLOCK_COLS + 2 * sums) + sums;
}

/** Bytes of a panel's buffer for matrices of up to `cols` columns. */
size_t batch_panel_bytes(int64_t cols);

/**
 * Packs up to 16 vectors as token tile `tile`: in[t * stride], n floats each, zero from there to
 * the next multiple of 64. `scratch` is overwritten.
 */
void cpu_batch_pack(const struct cpu_kernels *k, struct cpu_batch_acts *acts, uint32_t tile,
                    const float *in, size_t stride, int64_t n, uint32_t n_tokens,
                    struct cpu_act *scratch);

/** cpu_product_fn for a batch; `panel` has batch_panel_bytes for at least the matrix's columns. */
void cpu_batch_product(const struct cpu_kernels *k, const struct cpu_matrix *m, int64_t tile0,
                       int64_t tile1, const struct cpu_batch_acts *acts, uint32_t n, void *panel,
                       float *out, int64_t stride);

extern const struct cpu_batch_kernels cpu_batch_scalar;
#ifdef PDVM_HAVE_AVX2
extern const struct cpu_batch_kernels cpu_batch_avx2;
#endif
#ifdef PDVM_HAVE_AVX512
extern const struct cpu_batch_kernels cpu_batch_avx512;
#endif
#ifdef PDVM_HAVE_AMX
extern const struct cpu_batch_kernels cpu_batch_amx;
bool cpu_amx_supported(void);
#endif

#endif
