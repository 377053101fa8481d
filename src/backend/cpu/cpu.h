/**
 * The CPU backend's insides: packed matrices, activations, the kernel tables and the state that
 * the phases work on.
 *
 * Every kernel table gives bit-identical results: integer sums are exact, and float sums use the
 * same sixteen lanes in the same order whatever the instruction set (see lanes_sum).
 */
#ifndef PDVM_BACKEND_CPU_CPU_H
#define PDVM_BACKEND_CPU_CPU_H

#include "backend/backend.h"
#include "base/arena.h"
#include "base/half.h"

#include <stdatomic.h>

/** Parts of kernels whose arguments are constants only in their callers. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/**
 * Rows of a tile, the unit that work is split by, and the columns that matrices and activations are
 * padded to multiples of: a block is a tile's part of BLOCK_COLS columns.
 */
#define TILE_ROWS 16
#define BLOCK_COLS 64

/**
 * A block is stored as 16 micro-blocks of 64 positions: one mask, one vector register. Integer kinds
 * have 16 rows x 4 columns in one, so that each 32-bit lane of the register holds 4 weights of one
 * row, and a tile is one stream of them. The others have 4 rows x 16 columns, and a tile is four
 * streams, one for each 4 rows.
 */
#define BLOCK_MICROS 16

/** Value kinds of packed matrices; the first three take integer activations, the rest floats. */
enum cpu_kind { CPU_INT8, CPU_LUT4, CPU_SELL, CPU_F32, CPU_BF16, CPU_F16, CPU_LUT8, CPU_N_KINDS };

/**
 * A matrix in tiles of 16 rows and blocks of 64 columns, both padded.
 *
 * A stream is a sequence of micro-blocks from left to right. Bitmap: masks[micro-block] says which
 * of its 64 positions are stored, and the stream's values follow one another without padding. Dense:
 * all 64 of each. Position (r, c) of a micro-block is bit 4 r + c for integer kinds and 16 r + c for
 * the others. INT8 stores code + 128, because vector instructions multiply unsigned by signed bytes.
 * LUT4 holds the codes of even micro-blocks in the low nibbles and those of odd ones in the high
 * nibbles of the same bytes, both without gaps. 64 bytes and more are readable behind every array.
 *
 * SELL, for few entries, is a sliced ELLPACK format of int8 codes (SELL-C, Kreutzer et al. 2014) without
 * padding of rows: a tile is cut into blocks, a row's entries in a block into fours, and step k of a
 * block has the k-th four of every row that has so many. See struct cpu_step_head. No masks, not dense.
 *
 * Streams are numbered through all tiles, and every fourth of them follows the other in memory: 0, 4,
 * 8, ..., then 1, 5, 9, ... A kernel that takes four at once reads along four lines through memory,
 * which processors fetch faster than one. See cpu_stream_place.
 */
struct cpu_matrix {
    int64_t rows;
    int64_t cols;
    int64_t n_tiles;
    int64_t n_blocks; /* columns / 64, rounded up */
    int64_t n_entries;
    enum mdcsr_values values_coding;
    enum cpu_kind kind;
    bool dense;
    bool owned;       /* the arrays are freed with the matrix */
    int streams;      /* of a tile: 1 or 4 */
    uint32_t group;   /* columns per scale; 0: one scale per row */
    int64_t n_groups; /* scales per row, padded to whole blocks */
    uint64_t *masks;  /* [place of the stream][n_blocks * 16 / streams]; NULL when dense */
    uint8_t *values;
    uint64_t *offsets;      /* [n_tiles * streams] where each stream's values begin */
    uint64_t *bytes;        /* [n_tiles + 1] bytes of values of the tiles before */
    uint32_t *steps;        /* SELL: [n_tiles / 4, rounded up][n_groups] steps of each of 4 tiles */
    float *scales;          /* one per row: [place of the tile][16]; else NULL */
    uint16_t *group_scales; /* in groups: [place of the tile][n_groups][16], bfloat16 as in files */
    float table[256];       /* LUT8 */
    /* LUT4 with evenly spaced entries: entry c is factor * ((c << shift) - zero). Else factor 0. */
    struct {
        uint8_t factor, shift, zero;
    } linear4;
    _Alignas(64) int8_t table4[64]; /* LUT4: the 16 entries four times over, so that vpermb may
                                       see junk in index bits 4 and 5 */
};

/** Whether products with this kind take integer activations. */
static inline bool cpu_kind_is_integer(enum cpu_kind kind) {
    return kind <= CPU_SELL;
}

/** Streams that kernels take at once. Work is best split at multiples of so many tiles. */
#define STREAM_TEAM 4

/** Position of a stream among all of the matrix. */
static inline int64_t cpu_stream_place(const struct cpu_matrix *m, int64_t stream) {
    int64_t n = m->n_tiles * m->streams, line = stream % STREAM_TEAM, longer = n % STREAM_TEAM;
    return stream / STREAM_TEAM + line * (n / STREAM_TEAM) + (line < longer ? line : longer);
}

/** A stream's micro-blocks, masks and values. */
static inline int64_t cpu_stream_micros(const struct cpu_matrix *m) {
    return m->n_blocks * BLOCK_MICROS / m->streams;
}

static inline uint64_t *cpu_stream_masks(const struct cpu_matrix *m, int64_t stream) {
    return m->masks ? m->masks + cpu_stream_place(m, stream) * cpu_stream_micros(m) : NULL;
}

static inline uint8_t *cpu_stream_values(const struct cpu_matrix *m, int64_t stream) {
    return m->values + m->offsets[stream];
}

/**
 * What a step of a SELL stream begins with, 4 bytes. Then follow, of each row in `rows`, 4 columns as
 * bytes, counted from the block's first; then their 4 values as in INT8. Places that a row does
 * not need have value 128, that is 0. Four tiles that kernels take at once have equally many steps.
 */
struct cpu_step_head {
    uint16_t rows;   /* bit r: row r has entries in this step */
    uint16_t blocks; /* by how many blocks this one is right of the last step's */
};

/** Most columns that SELL takes: all sums of a row's digits stay inside 32 bits. */
#define SELL_MAX_COLS 32768

/** A tile's number of SELL steps in each group. */
static inline const uint32_t *cpu_tile_steps(const struct cpu_matrix *m, int64_t tile) {
    return m->steps + tile / STREAM_TEAM * m->n_groups;
}

/** The same as kernels' expand, for SELL. */
void cpu_sell_expand(const struct cpu_matrix *m, int64_t tile, int64_t block0, int64_t block1,
                     int8_t *out);

/** Position of a tile's scales among all. */
static inline int64_t cpu_tile_place(const struct cpu_matrix *m, int64_t tile) {
    return m->streams == 1 ? cpu_stream_place(m, tile) : tile;
}

/** A tile's 16 scales where each row has one. */
static inline float *cpu_tile_scales(const struct cpu_matrix *m, int64_t tile) {
    return m->scales + cpu_tile_place(m, tile) * TILE_ROWS;
}

/** A tile's scales where there are groups, [n_groups][16]. */
static inline uint16_t *cpu_tile_group_scales(const struct cpu_matrix *m, int64_t tile) {
    return m->group_scales + cpu_tile_place(m, tile) * m->n_groups * TILE_ROWS;
}

/** The scale of row r of a tile in group g; 1 if the matrix has none. */
static inline float cpu_scale(const struct cpu_matrix *m, int64_t tile, int64_t g, int64_t r) {
    if (m->group) return pd_bf16_to_float(cpu_tile_group_scales(m, tile)[g * TILE_ROWS + r]);
    return m->scales ? cpu_tile_scales(m, tile)[r] : 1;
}

/** Bytes of a tile's scales. */
size_t cpu_tile_scales_bytes(const struct cpu_matrix *m);

/**
 * Packs a checked matrix. The arrays come from `arena` and live as long as it does; with NULL they
 * are the matrix's own. `fast_sparse`: as in struct cpu_kernels; cpu_matrix_pack takes it to be so.
 */
pdvm_status cpu_matrix_pack_into(struct pd_arena *arena, const struct mdcsr *m, bool fast_sparse,
                                 struct pd_threads *threads, struct cpu_matrix **out,
                                 pdvm_error *err);
pdvm_status cpu_matrix_pack(const struct mdcsr *m, struct pd_threads *threads,
                            struct cpu_matrix **out, pdvm_error *err);
void cpu_matrix_free(struct cpu_matrix *m);

/**
 * Turns the sizes of streams that `offsets` holds into places, and fills `bytes`; returns the bytes
 * of all values.
 */
uint64_t cpu_matrix_place_streams(struct cpu_matrix *m);

/** The parts of a matrix that follow from its value coding: see MDCSR's. */
void cpu_matrix_init(struct cpu_matrix *m, int64_t rows, int64_t cols, enum mdcsr_values values,
                     uint32_t group);
void cpu_matrix_set_table(struct cpu_matrix *m, const float *codebook);

/** backend_ops.save_matrix and map_matrix for packed matrices: see packed_file.c. */
pdvm_status cpu_matrix_save(const struct cpu_matrix *m, struct pd_threads *threads,
                            const char *name, struct safetensors_writer *file, pdvm_error *err);
pdvm_status cpu_matrix_map(const struct safetensors *file, const char *name, int64_t rows,
                           int64_t cols, struct pd_threads *threads, struct pd_arena *arena,
                           struct cpu_matrix **out, pdvm_error *err);

/** Bytes of all arrays; and of tiles [0, tile) as a product reads them, for the work split. */
size_t cpu_matrix_bytes(const struct cpu_matrix *m);
size_t cpu_matrix_bytes_before(const struct cpu_matrix *m, int64_t tile);

/** Largest magnitude of quantised activations: both of their digits fit 8 bits with a sign. */
#define ACT_MAX 32639

/** Columns that one element of cpu_act.bias covers: divides every group. */
#define BIAS_COLS 32

/**
 * One activation vector as the products take it: 16-bit integers with one scale for the vector
 * (as accurate as floats, and exact sums), or floats. Zero from `cols` to the next multiple of 64.
 *
 * For instructions that multiply bytes the integers are split into two signed digits, and `bias` is
 * what sums over unsigned weights code + 128 have to be reduced by.
 */
struct cpu_act {
    float *x;
    float scale;  /* x = q * scale */
    int16_t *q;   /* -ACT_MAX .. ACT_MAX */
    int8_t *high; /* q = 256 * high + low */
    int8_t *low;
    int32_t *bias; /* [cols / 32] 128 * the sum of q over 32 columns */
};

/** Bytes that the integers of a vector of `cols` columns take, and their places in such memory,
 * aligned to 64 bytes. */
size_t cpu_act_bytes(size_t cols);
void cpu_act_place(struct cpu_act *act, void *memory, size_t cols);

/**
 * out[t * stride + r - 4 * tile0] = (W * act[t])[r] for the rows r of tiles [tile0, tile1) and
 * tokens t in [0, n). Rows of padding are not written.
 */
typedef void (*cpu_product_fn)(const struct cpu_matrix *m, int64_t tile0, int64_t tile1,
                               const struct cpu_act *act, uint32_t n, float *out, int64_t stride);

/** Declares, or begins, the cpu_product_fn of that name. */
#define CPU_PRODUCT(NAME)                                                                          \
    void NAME(const struct cpu_matrix *m, int64_t tile0, int64_t tile1, const struct cpu_act *act, \
              uint32_t n, float *out, int64_t stride)

/**
 * Writes the codes of a tile's columns [64 * block0, 64 * block1), LUT4 through the table, zero where
 * nothing is stored: out[column / 4][16 rows][4 columns], 1024 bytes per block. Integer kinds only.
 * Padding of a dense matrix may hold anything: activations are zero there.
 */
typedef void (*cpu_expand_fn)(const struct cpu_matrix *m, int64_t tile, int64_t block0,
                              int64_t block1, int8_t *out);

struct cpu_batch_kernels;
struct cpu_attention_kernels;

/** Kernels for one instruction set. */
struct cpu_kernels {
    const char *name;
    bool (*supported)(void);
    cpu_product_fn product[CPU_N_KINDS][2]; /* [kind][dense] */
    bool fast_sparse; /* products with bitmaps and SELL keep up with memory: else packed dense */
    cpu_expand_fn expand;
    /** The values of a tile of any other kind, all columns, scales multiplied in: row r at
     * out[r * stride]. */
    void (*expand_float)(const struct cpu_matrix *m, int64_t tile, float *out, int64_t stride);
    const struct cpu_batch_kernels *batch;         /**< products of many tokens, see batch.h */
    const struct cpu_attention_kernels *attention; /**< see attention.h */
    /** out[i] = x[i] / rms(x) * weight[i] */
    void (*rms_norm)(const float *x, const float *weight, int64_t n, float eps, float *out);
    /** Quantises x[n] to act, zero up to the next multiple of 64. The scale is NaN, and all is zero,
     * if x is not finite. Leaves act->x alone. */
    void (*quantise)(const float *x, int64_t n, struct cpu_act *act);
    /** Sum of a[i] * row[i] with a row of the cache, its scale left out. */
    float (*dot[3])(const float *a, const void *row, uint32_t n);
    /** acc[i] += p * row[i] */
    void (*add_scaled[3])(float *acc, float p, const void *row, uint32_t n);
};

extern const struct cpu_kernels cpu_kernels_scalar;

/** The product of integer kinds in plain C, for tables that have none of their own for SELL. */
CPU_PRODUCT(cpu_product_integer);

#ifdef PDVM_HAVE_NEON
extern const struct cpu_kernels cpu_kernels_neon;
#endif
#ifdef PDVM_HAVE_AVX2
extern const struct cpu_kernels cpu_kernels_avx2;
#endif
#ifdef PDVM_HAVE_AVXVNNI
extern const struct cpu_kernels cpu_kernels_avxvnni; /* avx2 but for integer products */
#endif
#ifdef PDVM_HAVE_AVX512
extern const struct cpu_kernels cpu_kernels_avx512;
#endif
#ifdef PDVM_HAVE_AMX
extern const struct cpu_kernels cpu_kernels_amx; /* avx512 but for batches */
#endif

/** The table of that name, or the best for "auto"; NULL and an error if this machine lacks it. */
pdvm_status cpu_kernels_find(const char *name, const struct cpu_kernels **out, pdvm_error *err);

/** The table of index i, supported or not; NULL past the end. For tests. */
const struct cpu_kernels *cpu_kernels_at(size_t i);

/* ---- products ------------------------------------------------------------------------------
 *
 * With one scale per row the result is (float)S * (scale * act.scale), S the exact sum of
 * code * q. With groups, S_g the exact sum over group g: lanes[g % 16] += (float)S_g * scale_g in
 * the order of g, and the result is lanes_sum(lanes) * act.scale. Other kinds: lanes[c % 16] +=
 * value * x[c] in the order of the columns, and lanes_sum(lanes). All float arithmetic in float.
 */

/** Sums 16 lanes by halving: the order that every kernel table uses. */
static inline float lanes_sum(float lanes[16]) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

/* ---- KV cache memory ------------------------------------------------------------------- */

/** Slots per chunk: the cache grows by whole chunks, and attention walks it chunk by chunk. */
#define KV_CHUNK 64

struct backend_kv {
    struct kv_shape shape;
    size_t row_bytes[2];   /* of one head's row of K and of V, without scale */
    size_t plane_bytes[2]; /* of one head's rows in one chunk */
    size_t layer_bytes;    /* of one layer in one chunk: all heads' K rows, V rows, scales */
    uint8_t **chunks;
    size_t n_chunks;
    size_t capacity;
};

pdvm_status cpu_kv_create(struct backend *b, const struct kv_shape *shape, struct backend_kv **out,
                          pdvm_error *err);
void cpu_kv_free(struct backend *b, struct backend_kv *kv);
pdvm_status cpu_kv_reserve(struct backend *b, struct backend_kv *kv, uint32_t n_slots,
                           pdvm_error *err);
pdvm_status cpu_kv_read(struct backend *b, const struct backend_kv *kv, uint32_t layer, bool value,
                        uint32_t n_slots, uint8_t *data, pdvm_error *err);
pdvm_status cpu_kv_write(struct backend *b, struct backend_kv *kv, uint32_t layer, bool value,
                         uint32_t n_slots, const uint8_t *data, pdvm_error *err);
size_t cpu_kv_bytes(const struct backend_kv *kv);

/** First row of a head in a chunk, rows `row_bytes` apart; `value`: V instead of K. */
static inline uint8_t *cpu_kv_rows(const struct backend_kv *kv, size_t chunk, uint32_t layer,
                                   bool value, uint32_t head) {
    return kv->chunks[chunk] + layer * kv->layer_bytes +
           (value ? kv->shape.n_kv_heads * kv->plane_bytes[0] : 0) + head * kv->plane_bytes[value];
}

/** The int8 scales of that head's rows, KV_CHUNK of them. */
static inline float *cpu_kv_scales(const struct backend_kv *kv, size_t chunk, uint32_t layer,
                                   bool value, uint32_t head) {
    const struct kv_shape *s = &kv->shape;
    uint8_t *p = kv->chunks[chunk] + layer * kv->layer_bytes +
                 s->n_kv_heads * (kv->plane_bytes[0] + kv->plane_bytes[1]);
    return (float *)(void *)p + (value * s->n_kv_heads + head) * (size_t)KV_CHUNK;
}

/** Stores row[head_dim] of floats into a slot in the cache's type. */
void cpu_kv_store(struct backend_kv *kv, uint32_t layer, bool value, uint32_t head, uint32_t slot,
                  const float *row);

/* ---- the state of a pass --------------------------------------------------------------- */

/** Most positions that one piece of attention work covers; longer caches are split. */
#define ATTN_PIECE 512

/** A worker's own memory. */
struct cpu_worker {
    struct cpu_act act; /* [1] for single-token passes */
    float *normed;      /* [hidden_size] */
    float *products;    /* [max_batch][PANEL_MAX_ROWS] */
    void *panel;        /* expanded weights, see batch_panel_bytes */
    float *attn;        /* attention of batches */
    float *q;           /* [head_dim] a rotated query */
    float *q_sink;      /* the same, rotated for the sinks */
    float *k;           /* [head_dim] */
    float *acc;         /* [head_dim] */
};

/** Most rows that are expanded for a batch, and that a phase computes before it uses the results. */
#define PANEL_MAX_ROWS 256

/** A batch's activations, packed in token tiles of 16. */
struct cpu_batch_acts {
    uint8_t *packed; /* [token tiles][tile_bytes] */
    size_t tile_bytes;
    float *scales;   /* [token tiles][16] */
    const float **x; /* [max_batch] */
    int digits;      /* 2: 16-bit integers; 1: 8-bit ones */
};

/** Tiles of up that are computed for a few tokens before they meet the gate. */
#define PRODUCT_TILES STREAM_TEAM

/* Rows of x, normed, attn and hidden are padded with zeros to whole blocks, as products read them. */
struct cpu_backend {
    struct backend base;
    const struct cpu_kernels *kernels;
    struct pd_threads *threads;
    struct pd_arena arena; /* the packed matrices' arrays */
    char description[64];
    char layout[64];
    const struct plan *plan;
    int64_t *splits;             /* [n_phases][n_split + 1] tiles, see split_phases */
    int64_t *grains;             /* [n_phases] least tiles of a piece of work */
    int n_split;                 /* workers that the phases are split for */
    struct cpu_worker *workers;  /* [n_workers] */
    struct cpu_act *acts;        /* [max_batch]: shared, for passes of a few tokens */
    struct cpu_batch_acts batch; /* shared, for passes of many tokens */
    float *normed;               /* [max_batch][hidden_size] */
    float *x;                    /* [max_batch][hidden_size] residual stream */
    float *q;                    /* [max_batch][n_heads * head_dim] */
    float *k;                    /* [max_batch][n_kv_heads * head_dim] */
    float *v;                    /* [max_batch][n_kv_heads * head_dim] */
    float *attn;                 /* [max_batch][n_heads * head_dim] */
    float *hidden;               /* [max_batch][intermediate_size] */
    float *rope;                 /* [max_batch][2][head_dim / 2] cos, sin */
    float *rope_sink;            /* [2][head_dim / 2] of minus the dropped positions */
    float *partial;          /* attention pieces: [pieces][n_heads][head_dim + 2], or workers' */
    size_t partial_capacity; /* floats */
    atomic_uint *merge;      /* [n_kv_heads] pieces that have arrived */
    void **allocations;      /* everything above, for destroy */
    size_t n_allocations;
    size_t allocation_capacity;
};

/** The tensor handle that the plan holds. */
struct backend_matrix {
    struct cpu_matrix *packed;  /* MATRIX_PRODUCT */
    const struct mdcsr *lookup; /* MATRIX_LOOKUP: borrowed */
    size_t bytes;
};

/** Steps of a pass: phases, or parts of phases in unfused mode. */
enum cpu_step_kind {
    STEP_EMBED,
    STEP_NORM, /* unfused only: rms_norm of x into the shared activations */
    STEP_QKV,
    STEP_ROPE, /* unfused only: (norm and) rotate q and k in place */
    STEP_ATTN,
    STEP_OUT,
    STEP_GATE_UP,
    STEP_DOWN,
    STEP_HEAD
};

/** One step for all workers. */
struct cpu_step {
    enum cpu_step_kind kind;
    const struct phase *phase;
    bool prepared; /* QKV: activations are ready (STEP_NORM came before); ATTN: rotated */
};

/** Runs one step as one of the workers. */
void cpu_step_run(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                  int worker, int n_workers);

/** STEP_ROPE and STEP_ATTN. */
void cpu_rope_step(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                   int worker, int n_workers);
void cpu_attn_step(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                   int worker, int n_workers);

/** Pieces that the slots visible to the pass's last token lie in, sliding windows left aside. */
static inline uint32_t cpu_attn_pieces(const struct batch *batch) {
    return (batch->n_visible + batch->n_tokens - 1 + ATTN_PIECE - 1) / ATTN_PIECE;
}

#endif
