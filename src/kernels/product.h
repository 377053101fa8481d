/**
 * The products: a warp walks its stream of tasks and adds what its lanes find to the sums of the
 * block's rows. Formats are arguments that are constant where the functions are inlined, so every
 * combination has a loop of its own.
 */
#ifndef PDVM_KERNELS_PRODUCT_H
#define PDVM_KERNELS_PRODUCT_H

#include "stream.h"

#define TASK_BYTES ((uint32_t)sizeof(struct gpu_task))

/** One chunk of one lane in registers. */
struct Chunk {
    u32x4 v;
    u32x4 gaps;
    uint32_t top; /* the top bits of 3-, 5- and 6-bit gaps */
    uint32_t scale;
};

FN uint32_t values_bytes(uint32_t values) {
    return values == GPU_LUT4 ? 8 : 16;
}

FN uint32_t gaps_bytes(uint32_t gap_bits) {
    return gap_bits == 3 ? 4 : gap_bits == 5 || gap_bits == 6 ? 8 : 2 * gap_bits;
}

FN uint32_t top_bytes(uint32_t gap_bits) {
    return gap_bits == 3 || gap_bits == 5 ? 2 : gap_bits == 6 ? 4 : 0;
}

/** Bytes of a chunk, all lanes together. */
FN uint32_t chunk_bytes(uint32_t values, uint32_t gap_bits, uint32_t scaled) {
    return GPU_LANES *
           (values_bytes(values) + gaps_bytes(gap_bits) + top_bytes(gap_bits) + (scaled ? 2 : 0));
}

FN struct Chunk load_chunk(const struct Ctx *c, struct Reader *s, uint32_t values,
                           uint32_t gap_bits, uint32_t scaled) {
    struct Chunk k;
    uint32_t at = GPU_LANES * values_bytes(values);
    uint32_t bytes = chunk_bytes(values, gap_bits, scaled);
    k.gaps = MAKE_X4(0, 0, 0, 0);
    k.top = 0;
    k.scale = 0;
    stream_need(c, s, bytes);
    if (values == GPU_LUT4) {
        u32x2 v = stream_x2(c, s, 0);
        k.v = MAKE_X4(v.x, v.y, 0, 0);
    } else {
        k.v = stream_x4(c, s, 0);
    }
    if (gap_bits == 2 || gap_bits == 3) {
        k.gaps.x = stream_x1(c, s, at);
    } else if (gap_bits >= 4 && gap_bits < 8) {
        u32x2 g = stream_x2(c, s, at);
        k.gaps.x = g.x;
        k.gaps.y = g.y;
    } else if (gap_bits == 8) {
        k.gaps = stream_x4(c, s, at);
    }
    at += GPU_LANES * gaps_bytes(gap_bits);
    if (gap_bits == 3 || gap_bits == 5) k.top = stream_u16(c, s, at);
    if (gap_bits == 6) k.top = stream_x1(c, s, at);
    at += GPU_LANES * top_bytes(gap_bits);
    if (scaled) k.scale = stream_u16(c, s, at);
    stream_advance(c, s, bytes);
    return k;
}

/** The four gap codes of entries 4 q to 4 q + 3, a byte each. */
FN uint32_t gaps_of(const struct Chunk *k, uint32_t gap_bits, uint32_t q) {
    uint32_t codes = 0;
    if (gap_bits == 2 || gap_bits == 3) codes = k->gaps.x >> (2 * q) & 0x03030303u;
    if (gap_bits >= 4 && gap_bits < 8)
        codes = (q < 2 ? k->gaps.x : k->gaps.y) >> (4 * (q & 1)) & 0x0f0f0f0fu;
    if (gap_bits == 8)
        codes = q == 0 ? k->gaps.x : q == 1 ? k->gaps.y : q == 2 ? k->gaps.z : k->gaps.w;
    /* The product puts bit i of four bits into byte i, without carries. */
    if (gap_bits == 3) codes |= (k->top >> (4 * q) & 15u) * (0x00204081u << 2) & 0x04040404u;
    if (gap_bits == 5) codes |= (k->top >> (4 * q) & 15u) * (0x00204081u << 4) & 0x10101010u;
    if (gap_bits == 6) codes |= (k->top >> (2 * q) & 0x03030303u) << 4;
    return codes;
}

/** 0xff in the bytes whose code is the largest and stands for no entry. */
FN uint32_t skipped(uint32_t codes, uint32_t gap_bits, uint32_t skips) {
    if (!skips) return 0;
    uint32_t high = gap_bits == 8 ? ((codes & 0x7f7f7f7fu) + 0x01010101u) & codes
                                  : codes + 0x01010101u * (0x81u - (1u << gap_bits));
    return sign_bytes(high);
}

/** The four codes in the low 16 bits, looked up in the codebook. */
FN uint32_t look_up(u32x4 book, uint32_t codes) {
    uint32_t low = bytes(book.x, book.y, codes & 0x7777u);
    uint32_t high = bytes(book.z, book.w, codes & 0x7777u);
    return bytes(low, high, (codes >> 1 & 0x4444u) | 0x3210u);
}

FN uint32_t quad_values(const struct Chunk *k, uint32_t values, u32x4 book, uint32_t q) {
    if (values == GPU_LUT4) return look_up(book, (q < 2 ? k->v.x : k->v.y) >> (16 * (q & 1)));
    return q == 0 ? k->v.x : q == 1 ? k->v.y : q == 2 ? k->v.z : k->v.w;
}

/** The integer multiplier of a group. */
FN int32_t multiplier(uint32_t code) {
    int32_t m = (int32_t)((code & 0xffu) << (code >> 8 & 15u));
    return code & 0x1000u ? -m : m;
}

/** What a warp knows while it reads its stream. */
struct Tasks {
    struct Reader s;
    uint32_t x;  /* address of the vector as integers */
    uint32_t xf; /* L: the vector as floats */
    uint32_t sums_hi;
    float amax;
};

/** Adds to a row's 64-bit sum: whoever wraps the low half around carries. */
FN void add_to_row(const struct Ctx *c, const struct Tasks *t, uint32_t row, int64_t v) {
    uint32_t low = (uint32_t)(uint64_t)v, high = (uint32_t)((uint64_t)v >> 32);
    uint32_t old = local_add(&L(uint32_t, SUMS_LO + 4 * row), low);
    high += old + low < old ? 1u : 0u;
    if (high) local_add(&L(uint32_t, t->sums_hi + 4 * row), high);
}

/** Sixteen dense entries at `at` (address of group memory, x as integers). */
FN int32_t dense_chunk(const struct Ctx *c, const struct Chunk *k, uint32_t values, u32x4 book,
                       uint32_t at, int32_t sum) {
    u32x4 a = local_x4(c, at), b = local_x4(c, at + 16);
    uint32_t v = quad_values(k, values, book, 0);
    sum = dot2_hi(a.y, v, dot2_lo(a.x, v, sum));
    v = quad_values(k, values, book, 1);
    sum = dot2_hi(a.w, v, dot2_lo(a.z, v, sum));
    v = quad_values(k, values, book, 2);
    sum = dot2_hi(b.y, v, dot2_lo(b.x, v, sum));
    v = quad_values(k, values, book, 3);
    return dot2_hi(b.w, v, dot2_lo(b.z, v, sum));
}

/** A task of integer values. */
FN void integer_task(const struct Ctx *c, struct Tasks *t, uint32_t row, uint32_t col,
                     uint32_t length, uint32_t group, uint32_t skips, u32x4 book, uint32_t values,
                     uint32_t gap_bits, uint32_t grouped) {
    uint32_t at = t->x + 2 * col;
    uint32_t per_group = grouped ? group / GPU_CHUNK : 0, in_group = 0;
    int32_t sum = 0;
    int64_t total = 0;
    NO_UNROLL
    for (uint32_t i = 0; i < length; i++) {
        if (gap_bits == 0) {
            int ends = grouped && (++in_group == per_group || i + 1 == length);
            struct Chunk k = load_chunk(c, &t->s, values, 0, 0);
            sum = dense_chunk(c, &k, values, book, at, sum);
            at += 2 * GPU_CHUNK;
            if (!ends) continue;
            stream_need(c, &t->s, 2 * GPU_LANES);
            uint32_t scale = stream_u16(c, &t->s, 0);
            stream_advance(c, &t->s, 2 * GPU_LANES);
            total += (int64_t)sum * multiplier(scale);
            sum = 0;
            in_group = 0;
            continue;
        }
        struct Chunk k = load_chunk(c, &t->s, values, gap_bits, grouped);
        int32_t flushed = 0;
        UNROLL
        for (uint32_t q = 0; q < 4; q++) {
            uint32_t codes = gaps_of(&k, gap_bits, q);
            uint32_t v = quad_values(&k, values, book, q);
            if (values == GPU_LUT4) {
                uint32_t none = skipped(codes, gap_bits, skips);
                codes &= ~none;
                v &= ~none;
            }
            /* The gaps' prefix sums are addresses; the entries' own widths are in the offsets. */
            uint32_t x0 = local_u16(c, dot4_u8(codes, 0x00000002u, at) + 8 * q);
            uint32_t x1 = local_u16(c, dot4_u8(codes, 0x00000202u, at) + 8 * q + 2);
            uint32_t x2 = local_u16(c, dot4_u8(codes, 0x00020202u, at) + 8 * q + 4);
            at = dot4_u8(codes, 0x02020202u, at);
            uint32_t x3 = local_u16(c, at + 8 * q + 6);
            sum = dot2_lo(bytes(x0, x1, 0x5410), v, sum);
            sum = dot2_hi(bytes(x2, x3, 0x5410), v, sum);
            if (grouped && k.scale >> 13 == q) flushed = sum;
        }
        at += 2 * GPU_CHUNK;
        if (grouped) {
            total += (int64_t)flushed * multiplier(k.scale);
            sum = k.scale >> 13 < 4 ? sum - flushed : sum;
        }
    }
    if (row == GPU_NO_ROW) return;
    add_to_row(c, t, row, grouped ? total : (int64_t)sum);
}

/** 2^k with 2^k * limit between 2^60 and 2^61; as its exponent, biased. */
FN uint32_t fixed_exponent(float limit) {
    int32_t e = 314 - (int32_t)(float_bits(limit) >> 23);
    return (uint32_t)(e < 1 ? 1 : e > 253 ? 253 : e);
}

FN float float_entry(uint32_t values, uint32_t bits) {
    return values == GPU_F16 ? f16_to_float(bits) : bf16_to_float(bits);
}

/** fma over two 16-bit entries. */
FN float float_pair(uint32_t values, uint32_t pair, float x0, float x1, float sum) {
    sum = fma_f(float_entry(values, pair & 0xffffu), x0, sum);
    return fma_f(float_entry(values, pair >> 16), x1, sum);
}

FN float float_quad(const struct Ctx *c, uint32_t at, uint32_t v0, uint32_t v1, uint32_t values,
                    float sum) {
    u32x4 x = L(u32x4, at);
    sum = float_pair(values, v0, bits_float(x.x), bits_float(x.y), sum);
    return float_pair(values, v1, bits_float(x.z), bits_float(x.w), sum);
}

/** Adds a lane's float to a row, as a fixed-point number. */
FN void add_float(const struct Ctx *c, const struct Tasks *t, uint32_t row, float sum,
                  float bound) {
    if (row == GPU_NO_ROW) return;
    float fixed = sum * bits_float(fixed_exponent(bound * t->amax) << 23);
    /* Out of range only if x is not finite, which the scale of the result says. */
    int64_t v = fixed > -0x1p62f && fixed < 0x1p62f ? float_to_long(fixed) : 0;
    add_to_row(c, t, row, v);
}

/** A dense task of float values. */
FN void float_task(const struct Ctx *c, struct Tasks *t, uint32_t row, uint32_t col,
                   uint32_t length, float bound, uint32_t values) {
    struct Reader *s = &t->s;
    const uint32_t plane = 16 * GPU_LANES;
    uint32_t at = t->xf + 4 * col;
    float sum = 0.0f;
    NO_UNROLL
    for (uint32_t i = 0; i < length * (values == GPU_F32 ? 4 : 2); i++) {
        stream_need(c, s, plane);
        u32x4 v = stream_x4(c, s, 0);
        stream_advance(c, s, plane);
        if (values == GPU_F32) {
            u32x4 a = L(u32x4, at);
            sum = fma_f(bits_float(v.x), bits_float(a.x), sum);
            sum = fma_f(bits_float(v.y), bits_float(a.y), sum);
            sum = fma_f(bits_float(v.z), bits_float(a.z), sum);
            sum = fma_f(bits_float(v.w), bits_float(a.w), sum);
            at += 16;
        } else {
            sum = float_quad(c, at, v.x, v.y, values, sum);
            sum = float_quad(c, at + 16, v.z, v.w, values, sum);
            at += 32;
        }
    }
    add_float(c, t, row, sum, bound);
}

/** Gaps of a chunk of float values: as load_chunk, with any number of bits. */
FN struct Chunk load_gaps(const struct Ctx *c, const struct Reader *s, uint32_t gap_bits,
                          uint32_t at) {
    struct Chunk k;
    k.v = MAKE_X4(0, 0, 0, 0);
    k.gaps = k.v;
    k.top = 0;
    k.scale = 0;
    if (gap_bits < 4) {
        k.gaps.x = stream_x1(c, s, at);
    } else if (gap_bits < 8) {
        u32x2 g = stream_x2(c, s, at);
        k.gaps.x = g.x;
        k.gaps.y = g.y;
    } else {
        k.gaps = stream_x4(c, s, at);
    }
    at += GPU_LANES * gaps_bytes(gap_bits);
    if (gap_bits == 3 || gap_bits == 5) k.top = stream_u16(c, s, at);
    if (gap_bits == 6) k.top = stream_x1(c, s, at);
    return k;
}

/** A task of float values with gaps: no loop of its own for each format, since it is rare. */
FN void float_gaps_task(const struct Ctx *c, struct Tasks *t, uint32_t row, uint32_t col,
                        uint32_t length, float bound, uint32_t values, uint32_t gap_bits) {
    struct Reader *s = &t->s;
    const uint32_t planes = values == GPU_F32 ? 4 : 2;
    uint32_t bytes = GPU_LANES * (16 * planes + gaps_bytes(gap_bits) + top_bytes(gap_bits));
    uint32_t at = t->xf + 4 * col;
    float sum = 0.0f;
    NO_UNROLL
    for (uint32_t i = 0; i < length; i++) {
        stream_need(c, s, bytes);
        struct Chunk k = load_gaps(c, s, gap_bits, 16 * GPU_LANES * planes);
        u32x4 v = k.v;
        for (uint32_t q = 0; q < 4; q++) {
            uint32_t codes = gaps_of(&k, gap_bits, q);
            uint32_t a = dot4_u8(codes, 0x00000004u, at), b = dot4_u8(codes, 0x00000404u, at) + 4;
            uint32_t d = dot4_u8(codes, 0x00040404u, at) + 8;
            at = dot4_u8(codes, 0x04040404u, at) + 12;
            float x0 = L(float, a), x1 = L(float, b), x2 = L(float, d), x3 = L(float, at);
            at += 4;
            if (values == GPU_F32) {
                v = stream_x4(c, s, 16 * GPU_LANES * q);
                sum = fma_f(bits_float(v.x), x0, sum);
                sum = fma_f(bits_float(v.y), x1, sum);
                sum = fma_f(bits_float(v.z), x2, sum);
                sum = fma_f(bits_float(v.w), x3, sum);
                continue;
            }
            if ((q & 1) == 0) v = stream_x4(c, s, 16 * GPU_LANES * (q / 2));
            sum = float_pair(values, q & 1 ? v.z : v.x, x0, x1, sum);
            sum = float_pair(values, q & 1 ? v.w : v.y, x2, x3, sum);
        }
        stream_advance(c, s, bytes);
    }
    add_float(c, t, row, sum, bound);
}

#define INTEGER_CASE(values, gap_bits)                                                             \
    case (values)*16 + (gap_bits):                                                                 \
        if (group)                                                                                 \
            integer_task(c, &t, row, col, length, group, skips, book, values, gap_bits, 1);        \
        else                                                                                       \
            integer_task(c, &t, row, col, length, 0, skips, book, values, gap_bits, 0);            \
        break;
#define FLOAT_CASE(values)                                                                         \
    case (values)*16: float_task(c, &t, row, col, length, bound, values); break;

/** Reads the warp's stream to its end. */
FN void run_tasks(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    struct Tasks t;
    t.s = stream_load(c);
    t.x = local_address(c, SH(at_x));
    t.xf = SH(at_x) + (ph->act & GPU_ACT_INT ? 2 * ph->x_pad : 0);
    t.sums_hi = SH(at_sums_hi);
    t.amax = SH(vector).amax;
    while (t.s.s.at != t.s.s.end) {
        stream_need(c, &t.s, TASK_BYTES);
        uint32_t row = stream_u16(c, &t.s, 0);
        uint32_t col = stream_u16(c, &t.s, 2 * GPU_LANES);
        uint32_t word = stream_word(c, &t.s, 4 * GPU_LANES);
        uint32_t kind = stream_word(c, &t.s, 4 * GPU_LANES + 4);
        stream_advance(c, &t.s, TASK_BYTES);
        uint32_t length = word & 0xffffu, group = word >> 16;
        uint32_t skips = kind >> 24 & GPU_TASK_SKIP;
        LOCAL const struct gpu_matrix *m = &ph->matrix[kind >> 16 & 3u];
        float bound = m->bound;
        u32x4 book = *(LOCAL const u32x4 *)&m->codebook[0];
        switch ((kind & 0xffu) * 16 + (kind >> 8 & 0xffu)) {
            INTEGER_CASE(GPU_INT8, 0)
            INTEGER_CASE(GPU_INT8, 2)
            INTEGER_CASE(GPU_INT8, 3)
            INTEGER_CASE(GPU_INT8, 4)
            INTEGER_CASE(GPU_INT8, 5)
            INTEGER_CASE(GPU_INT8, 6)
            INTEGER_CASE(GPU_INT8, 8)
            INTEGER_CASE(GPU_LUT4, 0)
            INTEGER_CASE(GPU_LUT4, 2)
            INTEGER_CASE(GPU_LUT4, 3)
            INTEGER_CASE(GPU_LUT4, 4)
            INTEGER_CASE(GPU_LUT4, 5)
            INTEGER_CASE(GPU_LUT4, 6)
            INTEGER_CASE(GPU_LUT4, 8)
            FLOAT_CASE(GPU_F16)
            FLOAT_CASE(GPU_BF16)
            FLOAT_CASE(GPU_F32)
        default:
            float_gaps_task(c, &t, row, col, length, bound, kind & 0xffu, kind >> 8 & 0xffu);
            break;
        }
    }
    stream_store(c, &t.s.s);
}

/** Zeroes the sums of the block's rows. Needs a sync before run_tasks. */
FN void clear_sums(const struct Ctx *c, uint32_t rows, uint32_t first, uint32_t n_threads) {
    for (uint32_t i = first; i < rows; i += n_threads) {
        L(uint32_t, SUMS_LO + 4 * i) = 0;
        L(uint32_t, SH(at_sums_hi) + 4 * i) = 0;
    }
}

/** The matrix that a phase's row belongs to. */
FN LOCAL const struct gpu_matrix *matrix_of(LOCAL const struct gpu_phase *ph, uint32_t row) {
    uint32_t i = ph->kind == GPU_GATE_UP ? row & 1u
                                         : (row >= ph->matrix[1].first_row ? 1u : 0u) +
                                               (row >= ph->matrix[2].first_row ? 1u : 0u);
    return &ph->matrix[i];
}

/** The product with the phase's row row0 + r, once all warps have added to it; `unit`: see abi.h. */
FN float row_result(const struct Ctx *c, LOCAL const struct gpu_phase *ph, uint32_t row0,
                    uint32_t r, float unit) {
    LOCAL const struct gpu_matrix *m = matrix_of(ph, row0 + r);
    uint64_t high = L(uint32_t, SH(at_sums_hi) + 4 * r);
    float sum = long_to_float((int64_t)(high << 32 | L(uint32_t, SUMS_LO + 4 * r)));
    if (!m->is_float) return sum * (unit * SH(vector).scale);
    /* Not a number, if the scale isn't. */
    uint32_t e = 254 - fixed_exponent(m->bound * SH(vector).amax);
    return sum * bits_float(e << 23) + 0.0f * SH(vector).scale;
}

#endif
