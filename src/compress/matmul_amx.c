/*
 * Split products on AMX. Operands are packed into tiles of 16 x 32 bfloat16: those of A are 16 rows
 * of 32 terms, those of B 16 pairs of terms by 16 columns, which is the same 16 x 16 pairs
 * transposed. An instruction multiplies a tile of A with one of B. Operands are cut into strips of 32
 * rows or columns; for every 32 terms of a strip two tiles of each part stand together, highest part
 * first, and two strips make 2 x 2 tiles of sums.
 */
#include "compress/matmul.h"

#include "base/amx.h"

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define TILE ((int64_t)1024) /* bytes */
#define STRIP ((int64_t)32)  /* rows of A or columns of B that are multiplied together */
#define TERMS ((int64_t)32)  /* of a step */
#define MOST_PARTS 3

/* The number of parts must be a constant where the work is done. */
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* What is packed at once: A's part comes from the third-level cache, B's stays in the second. */
#define ROWS ((int64_t)1024)
#define BLOCK ((int64_t)1024) /* terms */

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static void configure(void) {
    const struct pd_amx_config config = pd_amx_whole_tiles();
    pd_amx_configure(&config);
}

/* ---- packing --------------------------------------------------------------------------- */

/*
 * The parts of x, the upper halves of the numbers. Rounding halves up instead of to even makes no
 * difference: the next part has what is missing. Lower halves are not cleared.
 */
static inline void split(__m512 x, int parts, __m512i out[MOST_PARTS]) {
    const __m512i half = _mm512_set1_epi32(0x8000), mask = _mm512_set1_epi32(-0x10000);
    for (int p = 0; p < parts; p++) {
        out[p] = _mm512_add_epi32(_mm512_castps_si512(x), half);
        x = _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_and_si512(out[p], mask)));
    }
}

static inline __mmask16 first_lanes(int64_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

/* 16 rows of 32 terms that follow one another in memory. */
static inline void load_rows(const float *x, int64_t stride, int64_t rows, int64_t terms, int parts,
                             __m512i out[MOST_PARTS][16]) {
    static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                     23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                     45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const __m512i upper_halves = _mm512_loadu_si512(odd);
    __mmask16 first = first_lanes(terms), second = first_lanes(terms - 16);
    for (int64_t i = 0; i < 16; i++) {
        __m512i a[MOST_PARTS], b[MOST_PARTS];
        const float *row = x + (i < rows ? i : 0) * stride;
        split(_mm512_maskz_loadu_ps(i < rows ? first : 0, row), parts, a);
        split(_mm512_maskz_loadu_ps(i < rows ? second : 0, row + 16), parts, b);
        for (int p = 0; p < parts; p++)
            out[p][i] = _mm512_permutex2var_epi16(a[p], upper_halves, b[p]);
    }
}

/* 16 columns of 32 terms that are `stride` apart: 16 vectors of pairs. */
static inline void load_columns(const float *x, int64_t stride, int64_t columns, int64_t terms,
                                int parts, __m512i out[MOST_PARTS][16]) {
    const __m512i upper = _mm512_set1_epi32(-0x10000);
    __mmask16 mask = first_lanes(columns);
    for (int64_t i = 0; i < 16; i++) {
        __m512i a[MOST_PARTS], b[MOST_PARTS];
        int64_t t = 2 * i;
        split(_mm512_maskz_loadu_ps(t < terms ? mask : 0, x + (t < terms ? t : 0) * stride), parts,
              a);
        t++;
        split(_mm512_maskz_loadu_ps(t < terms ? mask : 0, x + (t < terms ? t : 0) * stride), parts,
              b);
        for (int p = 0; p < parts; p++)
            out[p][i] = _mm512_or_si512(_mm512_srli_epi32(a[p], 16), _mm512_and_si512(b[p], upper));
    }
}

/* Exchanges blocks of `size` lanes off the diagonal; with 1, 2, 4 and 8 a matrix is transposed. */
static inline void exchange(__m512i x[16], int size) {
    int32_t first[16], second[16];
    for (int lane = 0; lane < 16; lane++) {
        first[lane] = lane & size ? 16 + lane - size : lane;
        second[lane] = lane & size ? 16 + lane : lane + size;
    }
    const __m512i low = _mm512_loadu_si512(first), high = _mm512_loadu_si512(second);
    for (int i = 0; i < 16; i++) {
        if (i & size) continue;
        __m512i a = x[i], b = x[i + size];
        x[i] = _mm512_permutex2var_epi32(a, low, b);
        x[i + size] = _mm512_permutex2var_epi32(a, high, b);
    }
}

static inline void transpose(__m512i x[16]) {
    exchange(x, 1);
    exchange(x, 2);
    exchange(x, 4);
    exchange(x, 8);
}

/*
 * `n` rows of A or columns of B by `terms`, in strips. `apart`: terms are `stride` apart in memory;
 * otherwise they follow one another and rows or columns are.
 */
ALWAYS_INLINE void pack(const float *x, int64_t stride, bool apart, bool is_a, int64_t n,
                        int64_t terms, int parts, char *out) {
    for (int64_t strip = 0; strip < n; strip += STRIP) {
        for (int64_t term = 0; term < terms; term += TERMS, out += 2 * parts * TILE) {
            for (int64_t half = 0; half < 2; half++) {
                int64_t at = strip + 16 * half, left = n - at;
                __m512i part[MOST_PARTS][16];
                if (left <= 0)
                    memset(part, 0, sizeof part);
                else if (apart)
                    load_columns(x + term * stride + at, stride, left, terms - term, parts, part);
                else
                    load_rows(x + at * stride + term, stride, left, terms - term, parts, part);
                for (int p = 0; p < parts; p++) {
                    if (apart == is_a) transpose(part[p]);
                    for (int64_t i = 0; i < 16; i++)
                        _mm512_store_si512(out + (2 * p + half) * TILE + 64 * i, part[p][i]);
                }
            }
        }
    }
}

/* ---- products -------------------------------------------------------------------------- */

/* 32 x 32 sums over `steps` steps: of part i of A with part j of B for i + j < parts. */
ALWAYS_INLINE void multiply(const char *a, const char *b, int64_t steps, int parts,
                            float sums[4][256]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = 0; s < steps; s++, a += 2 * parts * TILE, b += 2 * parts * TILE) {
        for (int i = 0; i < parts; i++) {
            _tile_loadd(4, a + 2 * i * TILE, 64);
            _tile_loadd(5, a + (2 * i + 1) * TILE, 64);
            for (int j = 0; i + j < parts; j++) {
                _tile_loadd(6, b + 2 * j * TILE, 64);
                _tile_loadd(7, b + (2 * j + 1) * TILE, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

/* Puts up to 32 x 32 sums into C. */
static inline void put(float sums[4][256], float *c, int64_t stride, int64_t rows, int64_t columns,
                       bool add) {
    for (int64_t half = 0; half < 2; half++) {
        __mmask16 mask = first_lanes(columns - 16 * half);
        if (!mask) return;
        for (int64_t i = 0; i < rows; i++) {
            float *to = c + i * stride + 16 * half;
            __m512 x = _mm512_loadu_ps(sums[i / 16 * 2 + half] + i % 16 * 16);
            if (add) x = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), x);
            _mm512_mask_storeu_ps(to, mask, x);
        }
    }
}

static const float *at(const float *x, int64_t stride, bool transposed, int64_t row, int64_t term) {
    return transposed ? x + term * stride + row : x + row * stride + term;
}

static int64_t padded(int64_t n) {
    return (n + 31) / 32 * 32;
}

/* Columns [column, column + columns) of B in a block of terms. */
ALWAYS_INLINE void pack_b(const struct matmul_task *t, int64_t column, int64_t columns,
                          int64_t term, int64_t terms, int parts, char *out) {
    pack(at(t->b, t->b_stride, t->transposed, column, term), t->b_stride, t->transposed, false,
         columns, terms, parts, out);
}

/* Where they are among the parts of all of B: block after block of terms, each column by column. */
static int64_t place_b(const struct matmul_task *t, int64_t column, int64_t term, int64_t terms,
                       int parts) {
    return (term * padded(t->n) + column * padded(terms)) * 2 * parts;
}

/* All products of a block of rows with a panel of columns. */
ALWAYS_INLINE void run_panel(const char *a, const char *b, int64_t rows, int64_t columns,
                             int64_t steps, int parts, int64_t first, bool add, bool upper,
                             float *c, int64_t stride) {
    _Alignas(64) float sums[4][256];
    const int64_t strip = steps * 2 * parts * TILE;
    for (int64_t i = 0; i < rows; i += STRIP) {
        for (int64_t j = 0; j < columns; j += STRIP) {
            if (upper && first + j + STRIP <= i) continue;
            multiply(a + i / STRIP * strip, b + j / STRIP * strip, steps, parts, sums);
            put(sums, c + i * stride + j, stride, smaller(rows - i, STRIP), columns - j, add);
        }
    }
}

ALWAYS_INLINE void run_parts(const struct matmul_task *t, int parts, char *scratch) {
    char *a = scratch, *own_b = scratch + ROWS * BLOCK * 2 * parts;
    for (int64_t term = 0; term < t->k; term += BLOCK) {
        int64_t terms = smaller(t->k - term, BLOCK), steps = (terms + TERMS - 1) / TERMS;
        for (int64_t row = 0; row < t->m; row += ROWS) {
            int64_t rows = smaller(t->m - row, ROWS);
            pack(at(t->a, t->a_stride, t->transposed, row, term), t->a_stride, t->transposed, true,
                 rows, terms, parts, a);
            for (int64_t column = 0; column < t->n; column += MATMUL_COLUMNS) {
                int64_t columns = smaller(t->n - column, MATMUL_COLUMNS);
                const char *b = own_b;
                if (t->upper && column + columns <= row) continue;
                if (t->ready && t->ready->parts)
                    b = t->ready->parts + place_b(t, column, term, terms, parts);
                else
                    pack_b(t, column, columns, term, terms, parts, own_b);
                run_panel(a, b, rows, columns, steps, parts, column - row, t->add || term > 0,
                          t->upper, t->c + row * t->c_stride + column, t->c_stride);
            }
        }
    }
}

static void run(const struct matmul_task *t, char *scratch) {
    configure();
    if (t->exact)
        run_parts(t, 3, scratch);
    else
        run_parts(t, 2, scratch);
    _tile_release(); /* tiles in use make every switch of tasks slower */
}

static int64_t parts_bytes(const struct matmul_task *t) {
    return padded(t->n) * padded(t->k) * 2 * (t->exact ? 3 : 2);
}

static void prepare(const struct matmul_task *t, int64_t begin, int64_t end, char *out) {
    for (int64_t term = 0; term < t->k; term += BLOCK) {
        int64_t terms = smaller(t->k - term, BLOCK);
        for (int64_t column = begin; column < end; column += MATMUL_COLUMNS) {
            int64_t columns = smaller(end - column, MATMUL_COLUMNS);
            if (t->exact)
                pack_b(t, column, columns, term, terms, 3,
                       out + place_b(t, column, term, terms, 3));
            else
                pack_b(t, column, columns, term, terms, 2,
                       out + place_b(t, column, term, terms, 2));
        }
    }
}

const struct matmul_split matmul_split_amx = {
    .scratch_bytes = (ROWS + MATMUL_COLUMNS) * BLOCK * 2 * MOST_PARTS,
    .run = run,
    .parts_bytes = parts_bytes,
    .prepare = prepare,
};
