/**
 * What the host and the device agree on: the plan, the weights' layout, the state and a launch.
 * Plain C structs without pointers; everything is a byte offset into one of three arenas:
 *
 *     W   weights, norms, tables and the plan itself: written at load, then only read
 *     G   state: activations, barrier words, logits, tokens
 *     K   the keys and values of one session
 *
 * Offsets of arrays are multiples of 16. Arrays of floats that are as long as a vector (norms,
 * activations) have room for a multiple of 64, and zeros there; vectors that products take, for
 * gpu_x_pad. Compiled by nvcc, by OpenCL and Metal compilers (where dialect.h defines the integer
 * types first) and as plain C11.
 *
 * ## Rows and blocks
 *
 * The rows of a phase's matrices are numbered through: q, then k, then v; gate and up alternate
 * (row 2 j is gate j, row 2 j + 1 is up j). Block b owns the rows [block_rows[b],
 * block_rows[b + 1]) and nobody else adds to them, so a row is complete, and can be scaled, added
 * to the residual or run through SiLU, after a barrier within the block. The host chooses the
 * boundaries so that all blocks read nearly the same number of bytes; for gate and up they are even.
 *
 * ## Streams and tasks
 *
 * Warp w of block b reads stream b * n_warps + w, a contiguous run of tasks. A task is 32 lanes that
 * walk along one row each (or a part of it): a header (struct gpu_task), then `length` chunks of
 * GPU_CHUNK entries per lane. A row may be cut into any number of tasks, in any order, on any of
 * its block's warps: what they find is added up in 64-bit integers, which is exact. The lanes of a
 * task should walk along about the same columns, since x lies in banked memory.
 *
 * A chunk is made of planes; lane l's part of a plane of n bytes a lane lies at n * l:
 *
 *     values   INT8 16 bytes | LUT4 8 bytes, entry i in nibble i, low first | F16, BF16 two planes
 *              of 16 bytes (entries 0-7, 8-15) | F32 four planes of 16 bytes
 *     gaps     not if gap_bits is 0. Entry i has a code: columns skipped before it.
 *              2 bits: 4 bytes, entry i in bits 2 (i / 4) of byte i % 4
 *              4 bits: 8 bytes, word i / 8, byte i % 4, high nibble if i % 8 >= 4
 *              8 bits: 16 bytes, entry i in byte i
 *              3 bits: as 2, then 2 bytes: the top bit of entry i is bit i
 *              5 bits: as 4, then 2 bytes: the top bit of entry i is bit i
 *              6 bits: as 4, then 4 bytes as 2: the top two bits
 *     scales   2 bytes; only if `group` is not 0. With gaps: in every chunk. Dense: after the last
 *              chunk of each group, that is every group / 16 chunks. See below.
 *
 * Columns: a lane starts at col[lane]. Entry: column = next + code, then next = column + 1. Dense:
 * column = next. An entry that is there only to bridge a gap or to fill up a chunk has the value 0.
 * With GPU_TASK_SKIP (LUT4, codebooks without a zero) the largest code says that there is no entry,
 * whatever the value, and next = next + 1. Columns in [n_in, x_cols) may be named by entries that
 * fill up: x is
 * zero there. No column may reach x_cols, nor may `next` exceed it behind the last entry. Dense
 * tasks start at multiples of 16 columns.
 *
 * ## Scales
 *
 * Without groups a row is (float)sum * (units[row] * x's scale), the sum exact. With groups, the
 * sum of each group is exact, times an integer multiplier m, added up exactly: scale of the group =
 * m * units[row], units[row] a power of two. The u16 of a lane:
 *
 *     bits 0-7 significand, bits 8-11 shift, bit 12 sign: m = +-(significand << shift)
 *     bits 13-15 with gaps: the group ends behind entry 4 * this + 3 of the chunk; 4: it doesn't
 *
 * So with gaps a group ends at most once in a chunk, and at a multiple of four entries. A group's
 * entries must be in one task, and the last chunk of a task must end the group it is in.
 * GPU_MAX_COLS * 127 * 32767 * (255 << 15) < 2^63 bounds every sum.
 *
 * Float values (F16, BF16, F32) multiply float activations; a lane's sum for a task, taken in the
 * order of its entries, becomes a 64-bit fixed-point number by the matrix's `bound`. No groups;
 * units[row] is not read.
 */
#ifndef PDVM_KERNELS_ABI_H
#define PDVM_KERNELS_ABI_H

#ifndef PDVM_KERNEL_TYPES
#include <stdint.h>
#endif

/** Raised with every change of this file that old plans don't survive. */
#define GPU_ABI_VERSION 2

#define GPU_BLOCK_THREADS 384u  /**< of compiled CUDA kernels */
#define GPU_LANES 32            /**< lanes of a warp, rows of a task */
#define GPU_CHUNK 16            /**< entries of a lane in a chunk */
#define GPU_NO_ROW 0xffffu      /**< gpu_task.row of an idle lane */
#define GPU_NONE (~(uint64_t)0) /**< an offset to nothing */
#define GPU_MAX_COLS 65536u     /**< columns are 16-bit */
#define GPU_PAGE 2048u /**< bytes that a ring takes at a time; streams begin anywhere (16) */
#define GPU_LINE 128u  /**< bytes between words that different blocks write */
/**
 * Most chunks of an INT8 or LUT4 task without groups: 32 * 16 * 127 * 32767 < 2^31 bounds the 32-bit
 * sum of a lane (entries that are there for their gap count, too). Groups have at most 256 columns,
 * so their tasks have no such limit.
 */
#define GPU_MAX_CHUNKS 32u

/** What the values of a task are. */
enum gpu_values { GPU_INT8, GPU_LUT4, GPU_F16, GPU_BF16, GPU_F32 };

/** gpu_task.flags */
#define GPU_TASK_SKIP 1u /**< LUT4 with gaps: the largest gap code means "no entry, one column" */

/** Header of a task, in front of its chunks. */
struct gpu_task {
    uint16_t row[GPU_LANES]; /**< relative to the block's first row */
    uint16_t col[GPU_LANES]; /**< where the lane starts */
    uint16_t length;         /**< chunks */
    uint16_t group;          /**< columns per scale: 0 or a multiple of 16 up to 256 */
    uint8_t values;          /**< enum gpu_values */
    uint8_t gap_bits;        /**< 0: dense; 2, 3, 4, 5, 6, 8 */
    uint8_t matrix;          /**< index of the phase's matrix: codebook and bound */
    uint8_t flags;
    uint32_t reserved[2];
};

/** What tasks of a matrix need to know about it. */
struct gpu_matrix {
    int8_t codebook[16]; /**< LUT4 */
    float bound;         /**< float values: largest sum of |w| over a row */
    uint32_t is_float;   /**< F16, BF16 or F32 */
    uint32_t first_row;  /**< 0xffffffff: there is no such matrix; unused where rows alternate */
    uint32_t reserved;
};

enum gpu_phase_kind {
    GPU_EMBED,
    GPU_QKV,
    GPU_ATTN,
    GPU_OUT,
    GPU_GATE_UP,
    GPU_DOWN,
    GPU_HEAD,
    GPU_SAMPLE, /**< after HEAD: joins the blocks' candidates, and samples if asked to */
    /* Only in unfused mode: parts of phases as launches of their own. */
    GPU_NORM, /**< the first part of the QKV phase of the same index */
    GPU_ROPE  /**< the first part of the ATTN phase of the same index */
};

/** The largest integer of a vector: the CPU backend's, so that both round activations alike. */
#define GPU_ACT_MAX 32639.0f

/** gpu_phase.act: forms of the activations that the phase's matrices multiply. */
#define GPU_ACT_INT 1u
#define GPU_ACT_FLOAT 2u

/** One phase. Two of them are staged in group memory, so the size is fixed. */
struct gpu_phase {
    uint32_t kind;
    uint32_t layer;
    uint64_t weights;    /**< W: the streams */
    uint64_t streams;    /**< W: uint32_t[n_blocks * n_warps + 1], in units of 16 bytes, rising */
    uint64_t block_rows; /**< W: uint32_t[n_blocks + 1] */
    uint64_t units;      /**< W: float[rows]; see above */
    uint64_t norm;      /**< W: float[n_in], RMSNorm weights in front of the product, or GPU_NONE */
    uint64_t next_norm; /**< W: EMBED, OUT, DOWN: the norm of the phase that reads x next */
    uint64_t bias;      /**< W: float[rows] or GPU_NONE */
    uint64_t head_norm[2]; /**< W: ATTN: float[head_dim] of q and of k, or GPU_NONE */
    uint64_t in;           /**< G: the vector that the matrices multiply */
    uint32_t rows;
    uint32_t n_in;   /**< columns */
    uint32_t x_cols; /**< columns of x in group memory, zero from n_in: a multiple of 64 */
    uint32_t x_pad;  /**< gpu_x_pad(x_cols, threads of a block) */
    uint32_t act;
    uint32_t window; /**< ATTN: as in struct phase */
    struct gpu_matrix matrix[3];
};

#define GPU_PHASE_NORM 40u /**< offset of gpu_phase.norm */

/** How the embedding's rows are stored: dense, row_bytes apart. */
enum gpu_embedding { GPU_EMBED_F32, GPU_EMBED_F16, GPU_EMBED_BF16, GPU_EMBED_CODES };

/** The plan in W. n_phases = 2 + 5 * n_layers + 1: as struct plan, and SAMPLE. */
struct gpu_plan {
    uint32_t version; /**< GPU_ABI_VERSION */
    uint32_t n_phases;
    uint32_t n_blocks;
    uint32_t n_warps; /**< of a block */
    uint32_t hidden_size;
    uint32_t intermediate_size;
    uint32_t n_layers;
    uint32_t n_heads;
    uint32_t n_kv_heads;
    uint32_t head_dim;
    uint32_t n_vocab;
    float rms_norm_eps;
    float rope_factor;
    uint32_t embed_kind;  /**< enum gpu_embedding */
    uint32_t embed_group; /**< CODES: columns per scale; 0: one per row */
    uint32_t max_rows;    /**< most rows of a block in any phase */
    uint32_t x_bytes;     /**< group memory for activations: see gpu_shared_size */
    uint32_t group;       /**< query heads of a kv head */
    float inv_hidden;     /**< 1 / hidden_size */
    uint32_t max_splits;  /**< of a head's positions in attention: rows of attn_part per head */
    uint64_t embed_row_bytes;
    uint64_t phases;       /**< W: struct gpu_phase[n_phases] */
    uint64_t inv_freq;     /**< W: float[head_dim / 2] */
    uint64_t embed;        /**< W: rows; CODES: a byte per column */
    uint64_t embed_scales; /**< W: float[n_vocab][groups] */
    uint64_t embed_table;  /**< W: float[256], value of each code (INT8: of the code as unsigned) */
    /* State. */
    uint64_t parts; /**< G: struct gpu_part[4][n_blocks], zeroed once: see there */
    uint64_t epoch; /**< G: uint32_t, zeroed once: barriers passed by the launches before */
    uint64_t fault; /**< G: uint32_t[4]: 0, or where a kernel gave up */
    uint64_t x;     /**< G: float[hidden_size] */
    uint64_t xn;    /**< G: float[hidden_size]: x times the weights of the norm that comes next */
    uint64_t qkv;   /**< G: float[(n_heads + 2 * n_kv_heads) * head_dim] */
    uint64_t attn;  /**< G: float[n_heads * head_dim] */
    uint64_t attn_part; /**< G: float[n_heads][max_splits][head_dim], then pairs of floats alike */
    uint64_t
        attn_done;   /**< G: uint32_t[n_kv_heads][GPU_LINE / 4], zeroed once: a word a query head */
    uint64_t hidden; /**< G: float[intermediate_size] */
    uint64_t xq;     /**< G: unfused: struct gpu_quantised, then int16_t[hidden_size] */
    uint64_t xf;     /**< G: unfused: float[hidden_size], normalised x */
    uint64_t x_in;   /**< G: float[hidden_size]: activations from the host */
    uint64_t tokens; /**< G: int32_t[most steps + 1]: given ones, then sampled ones */
    uint64_t logits; /**< G: float[max_logits][n_vocab] */
    uint64_t head_top; /**< G: struct gpu_top[n_blocks]: each block's best candidates */
    uint64_t result;   /**< G: struct gpu_result */
    uint64_t stops;    /**< G: int32_t[GPU_MAX_STOPS] */
    uint64_t rope; /**< G: float[head_dim][2]: cos and sin of each pair at the step's position, then
                        those that turn a query back by the positions that were dropped */
    uint64_t times; /**< G: uint32_t[n_blocks][n_phases][GPU_TIMES_OF_PHASE], see GPU_TIMED */
    uint64_t step;  /**< G: struct gpu_step, for GPU_STEP_STORED */
};

/** Where the first step's token goes, as in struct gpu_launch. */
struct gpu_step {
    uint32_t position;
    uint32_t slot;
    uint32_t n_visible;
    uint32_t n_dropped;
};

/**
 * What a block says of a phase when it is through: what it knows of the vector that it wrote a part
 * of (parts are joined in their order), and, by the epoch, that it is through. So the barrier between
 * two phases and what the second one has to know first are one message. Buffers 0 and 1 take turns
 * within a launch: a block is at most one phase ahead of another one. A launch's last phase writes
 * buffer 2 + its number % 2, which the next phase's launch reads.
 */
struct gpu_part {
    float squares;    /**< sum of squares */
    uint32_t largest; /**< bits of the largest |v| (of |v * next norm| for x); NaN is the largest */
    uint32_t epoch;   /**< number of the barrier, over all launches (modulo 2^32) */
    uint32_t reserved;
};

/** In front of a quantised vector. */
struct gpu_quantised {
    float scale;
    uint32_t reserved[3];
};

#define GPU_BLOCK_TOP 64   /**< candidates that each block hands on */
#define GPU_CANDIDATES 256 /**< candidates that the host gets */
#define GPU_MAX_STOPS 32

/** A token that may be chosen. */
struct gpu_candidate {
    float logit;
    uint32_t token;
};

/** The best rows of one block, tokens ascending. */
struct gpu_top {
    float largest; /**< largest logit of the block */
    uint32_t n;    /**< candidates */
    float mass;    /**< sum over the block's rows of exp(logit - largest) */
    uint32_t best; /**< the token of the largest, the lowest of equals */
    uint32_t cut;  /**< not 0: there were more, none of them above this (see order_of) */
    uint32_t reserved[3];
    struct gpu_candidate candidate[GPU_BLOCK_TOP];
};

/** What the host reads after a launch. */
struct gpu_result {
    uint32_t n_steps;      /**< tokens computed: less than asked for after a stop token */
    uint32_t n_candidates; /**< of the last head */
    uint32_t complete; /**< the candidates are the n_candidates best of all; 0: read the logits */
    float mass;        /**< sum over the vocabulary of exp(logit - largest) */
    struct gpu_candidate candidate[GPU_CANDIDATES]; /**< best first; equal: lower token first */
};

/** KV types, as pdvm_kv_type. */
enum gpu_kv_type { GPU_KV_F32, GPU_KV_F16, GPU_KV_INT8 };

/**
 * The cache of one session: rows of head_dim elements, `pitch` bytes apart (a multiple of 16, the
 * rest zero), at ((layer * n_kv_heads + head) * capacity + slot) * pitch from k or v; the INT8
 * scales are floats at the same index times 4.
 */
struct gpu_kv {
    uint64_t k, v, k_scales, v_scales; /**< K */
    uint32_t capacity;                 /**< slots */
    uint32_t type_k, type_v;           /**< enum gpu_kv_type */
    uint32_t pitch_k, pitch_v;
    uint32_t reserved;
};

/** gpu_launch.flags */
#define GPU_X_IN 1u     /**< EMBED takes x_in instead of a token's row */
#define GPU_PREPARED 2u /**< unfused: QKV takes xq, ATTN takes rotated q and an appended row */
#define GPU_SAMPLING 4u /**< SAMPLE chooses the next token */
#define GPU_LIST 32u /**< SAMPLE lists the candidates of the last step; else the logits are all */
#define GPU_STEP_STORED 8u /**< plan.step holds the first step's place: launches can be replayed */
/**
 * Each block writes its clock (low half, cycles) to plan.times: when a phase begins, when its vector
 * is in group memory, when its weights are read, when it arrives at the barrier. The last step's stay.
 */
#define GPU_TIMED 16u
#define GPU_TIMES_OF_PHASE 4u

/**
 * One launch: phases [first_phase, end_phase) for each of n_steps tokens. Steps from n_given on
 * take the token that SAMPLE chose in the step before (so all phases must be run).
 * Steps before first_logits leave HEAD and SAMPLE out; step s writes row s - first_logits of logits,
 * or always row 0 if n_logit_rows is 1.
 */
struct gpu_launch {
    uint64_t plan; /**< W: struct gpu_plan */
    struct gpu_kv kv;
    uint32_t flags;
    uint32_t first_phase, end_phase;
    uint32_t part; /**< 0, or GPU_NORM or GPU_ROPE: that part of phase first_phase alone */
    uint32_t n_steps, n_given;
    uint32_t first_logits, n_logit_rows;
    uint32_t position; /**< of the first step; struct batch says what the rest means */
    uint32_t slot;
    uint32_t n_visible;
    uint32_t n_sink;
    uint32_t n_dropped;
    uint32_t n_ctx;      /**< slots of a rolling cache, which then wraps around; or 0xffffffff */
    uint32_t n_stop;     /**< stop tokens in `stops` */
    uint32_t spin_limit; /**< give up a barrier after so many polls; 0: never */
    float temperature;   /**< SAMPLE: 0 takes the likeliest */
    float top_p;         /**< 1: all */
    uint32_t top_k;      /**< 1..GPU_CANDIDATES */
    uint32_t x_phase;    /**< GPU_X_IN: the phase that reads x next: its norm is prepared for */
    uint64_t seed;       /**< state of SplitMix64: step s takes the number after s + 1 advances */
    uint64_t read_bytes; /**< pdvm_read: bytes of W */
    float min_p;         /**< SAMPLE: keep p >= min_p * p(likeliest); 0: all */
    uint32_t reserved;
};

/* Rounds in which a block loads a vector, see gpu_x_pad. */
#define GPU_ACT_FEW 2u
#define GPU_ACT_SOME 4u
#define GPU_ACT_MANY 10u

#define GPU_RING_PAGES 4u
#define GPU_HEADS_AT_ONCE 4u /**< query heads of one group that a warp attends for at once */
#define GPU_MAX_HEAD_DIM 256u
#define GPU_MAX_WARPS 32u
#define GPU_SHARED_FIXED 5632u /**< group memory of struct Sh, see group.h */

#ifndef PDVM_KERNEL_TYPES

/** Bytes of group memory that attention needs: queries, the new row, and parts of the result: each warp's
 * and the new row's. */
static inline uint32_t gpu_attn_bytes(const struct gpu_plan *p) {
    uint32_t group = p->n_heads / p->n_kv_heads;
    uint32_t at_once = group < GPU_HEADS_AT_ONCE ? group : GPU_HEADS_AT_ONCE;
    uint32_t width = (p->head_dim + 7) / 8 * 8, parts = p->n_warps * at_once;
    if (parts < group) parts = group;
    return 4 * ((2 * group + 2) * width + (parts + group) * (width + 2));
}

/**
 * Elements of a vector with room for whole rounds: every thread takes the same number of times four
 * elements at once, so nobody has to ask where the end is.
 */
static inline uint32_t gpu_x_pad(uint32_t cols, uint32_t n_threads) {
    uint32_t rounds = (cols + 4 * n_threads - 1) / (4 * n_threads);
    if (rounds <= GPU_ACT_FEW) return GPU_ACT_FEW * 4 * n_threads;
    if (rounds <= GPU_ACT_SOME) return GPU_ACT_SOME * 4 * n_threads;
    return (rounds + GPU_ACT_MANY - 1) / GPU_ACT_MANY * GPU_ACT_MANY * 4 * n_threads;
}

/** Bytes of group memory for x in a phase: 16-bit integers, then floats. */
static inline uint32_t gpu_act_bytes(const struct gpu_phase *p) {
    return (p->act & GPU_ACT_INT ? 2 * p->x_pad : 0) + (p->act & GPU_ACT_FLOAT ? 4 * p->x_cols : 0);
}

/** plan.x_bytes must be the largest of gpu_attn_bytes, gpu_act_bytes of all phases and this. */
static inline uint32_t gpu_sample_bytes(const struct gpu_plan *p) {
    return p->n_blocks * GPU_BLOCK_TOP * 4 + 2 * GPU_CANDIDATES * 8;
}

/** Dynamic group memory of a launch; `ring`: of kernels for compute capability 9.0 and above. */
static inline uint32_t gpu_shared_size(const struct gpu_plan *p, int ring) {
    uint32_t acc = (8 * p->max_rows + 127) / 128 * 128 + (16 * p->max_rows + 127) / 128 * 128;
    uint32_t x = (p->x_bytes + 127) / 128 * 128 + (8 * p->n_blocks + 127) / 128 * 128;
    return GPU_SHARED_FIXED + acc + x + (ring ? p->n_warps * GPU_RING_PAGES * GPU_PAGE : 0);
}

#endif

#endif
