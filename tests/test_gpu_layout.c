// The streams of the GPU layout, read back by a plain decoder of src/kernels/abi.h: every weight
// comes out where it was, whatever the coding, and no lane leaves the columns that x has.

#include "backend/cuda/layout.h"
#include "base/half.h"
#include "base/random.h"
#include "base/threads.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float *random_weights(int64_t rows, int64_t cols, double density, uint64_t *seed) {
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    assert_non_null(w);
    for (int64_t r = 0; r < rows; r++) {
        double d = pd_random(seed) % 8 == 0 ? (double)(pd_random(seed) % 2) : density;
        float size = ldexpf(1, (int)(pd_random(seed) % 5)); // rows and groups of other scales
        for (int64_t c = 0; c < cols; c++)
            if (pd_random_unit(seed) < d)
                w[r * cols + c] =
                    size * (float)(pd_random_unit(seed) - 0.5) * (c / 64 % 3 == 0 ? 0.1f : 1.0f);
    }
    return w;
}

// What a stream says of one phase, as weights.
struct decoded {
    const struct gpu_layout *l;
    float *w; // [rows][n_in]
    uint64_t n_values;
};

static uint32_t u16_at(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint32_t gap_of(const uint8_t *p, uint32_t bits, uint32_t lane, uint32_t i) {
    if (bits == 0) return 0;
    if (bits == 8) return p[16 * lane + i];
    uint32_t low, top = 0;
    if (bits >= 4) {
        uint32_t word;
        memcpy(&word, p + 8 * lane + i / 8 * 4, sizeof word);
        low = word >> (8 * (i % 4) + (i % 8 >= 4 ? 4 : 0)) & 15;
        p += 8 * 32;
    } else {
        low = p[4 * lane + i % 4] >> (2 * (i / 4)) & 3;
        p += 4 * 32;
    }
    if (bits == 3 || bits == 5) top = u16_at(p + 2 * lane) >> i & 1;
    if (bits == 6) top = p[4 * lane + i % 4] >> (2 * (i / 4)) & 3;
    return low | top << (bits >= 4 ? 4 : 2);
}

static float value_of(const struct gpu_layout *l, const struct gpu_task *t, const uint8_t *p,
                      uint32_t lane, uint32_t i) {
    uint16_t h;
    float f;
    switch (t->values) {
    case GPU_INT8: return (int8_t)p[16 * lane + i];
    case GPU_LUT4: return l->matrix[t->matrix]->codebook[p[8 * lane + i / 2] >> (i % 2 * 4) & 15];
    case GPU_F16:
    case GPU_BF16:
        memcpy(&h, p + i / 8 * 512 + 16 * lane + i % 8 * 2, sizeof h);
        return t->values == GPU_F16 ? pd_f16_to_float(h) : pd_bf16_to_float(h);
    case GPU_F32: memcpy(&f, p + i / 4 * 512 + 16 * lane + i % 4 * 4, sizeof f); return f;
    default: fail(); return 0;
    }
}

static float multiplier(uint32_t bits) {
    float m = (float)((bits & 255) << (bits >> 8 & 15));
    return bits >> 12 & 1 ? -m : m;
}

// One lane of a task; groups wait for their scale.
static void decode_lane(struct decoded *d, uint32_t block, const struct gpu_task *t, uint32_t lane,
                        const uint8_t *p) {
    const struct gpu_layout *l = d->l;
    const struct gpu_coding c = {
        .values = (enum gpu_values)t->values, .gap_bits = t->gap_bits, .group = t->group};
    const uint32_t stride = 32 * gpu_coding_chunk_bytes(&c);
    const uint32_t values = 32 * (t->values == GPU_INT8   ? 16
                                  : t->values == GPU_LUT4 ? 8
                                  : t->values == GPU_F32  ? 64
                                                          : 32);
    bool idle = t->row[lane] == GPU_NO_ROW;
    uint32_t row = l->block_rows[block] + t->row[lane];
    if (!idle) assert_true(row < l->block_rows[block + 1]);
    float *w = idle ? NULL : d->w + (size_t)row * l->n_in;
    uint32_t next = t->col[lane], most = (1u << t->gap_bits) - 1, pending = 0;
    uint32_t cols[1024];
    float sums[1024];
    for (uint32_t k = 0; k < t->length; k++) {
        uint32_t scale = 0, end = 16; // entries before the end of a group in this chunk
        const uint8_t *planes = p;
        p += stride;
        if (t->group && t->gap_bits) {
            scale = u16_at(p - 64 + 2 * lane);
            end = (scale >> 13) < 4 ? 4 * (scale >> 13) + 4 : 17;
            if (k + 1 == t->length) assert_true(end <= 16);
        } else if (t->group) {
            end = 17;
            if ((k + 1) % (t->group / 16) == 0) {
                scale = u16_at(p + 2 * lane);
                p += 64;
                end = 16;
            }
        }
        for (uint32_t i = 0; i < 16; i++) {
            uint32_t code = gap_of(planes + values, t->gap_bits, lane, i);
            uint32_t col = next + code;
            bool none = t->flags & GPU_TASK_SKIP && code == most;
            next = none ? next + 1 : col + 1;
            assert_true(next <= l->x_cols);
            float v = none ? 0 : value_of(l, t, planes, lane, i);
            if (!idle && v != 0 && col < l->n_in) { // x is zero behind
                assert_true(pending < 1024);
                cols[pending] = col;
                sums[pending++] = v;
                d->n_values++;
            }
            if (i + 1 != end && !(i == 15 && !t->group)) continue;
            for (uint32_t j = 0; j < pending; j++) {
                float s = t->values >= GPU_F16 ? 1
                          : t->group           ? multiplier(scale) * l->units[row]
                                               : l->units[row];
                if (s == 0) continue; // a lane that has come to its end
                if (w[cols[j]] != 0)
                    fail_msg("column %u of row %u twice (values %u, %u gap bits, group %u)",
                             cols[j], row, t->values, t->gap_bits, t->group);
                w[cols[j]] = sums[j] * s;
            }
            pending = 0;
        }
    }
    assert_true(idle || pending == 0);
}

static void decode(struct decoded *d, const uint8_t *data) {
    const struct gpu_layout *l = d->l;
    for (uint32_t s = 0; s < l->n_blocks * l->n_warps; s++) {
        const uint8_t *p = data + 16 * (uint64_t)l->streams[s];
        const uint8_t *end = data + 16 * (uint64_t)l->streams[s + 1];
        while (p < end) {
            struct gpu_task t;
            memcpy(&t, p, sizeof t);
            const struct gpu_coding c = {
                .values = (enum gpu_values)t.values, .gap_bits = t.gap_bits, .group = t.group};
            uint64_t lane = (uint64_t)t.length * gpu_coding_chunk_bytes(&c);
            if (t.group && !t.gap_bits) lane += 2 * (t.length / (t.group / 16u));
            if (t.values <= GPU_LUT4 && !t.group) assert_true(t.length <= GPU_MAX_CHUNKS);
            for (uint32_t i = 0; i < 32; i++) decode_lane(d, s / l->n_warps, &t, i, p + sizeof t);
            p += sizeof t + 32 * lane;
        }
        assert_ptr_equal(p, end);
    }
}

static void check(const struct mdcsr *const *m, int n, bool alternate, uint32_t n_blocks,
                  uint32_t n_warps) {
    struct gpu_layout l, alone;
    struct pd_threads *threads;
    pdvm_error err;
    assert_ok(pd_threads_create(3, &threads, &err), &err);
    assert_ok(gpu_layout_create(m, n, alternate, n_blocks, n_warps, threads, &l, &err), &err);
    uint8_t *data = malloc(l.size + 1), *again = malloc(l.size + 1);
    assert_ok(gpu_layout_write(&l, threads, data, &err), &err);
    assert_ok(gpu_layout_create(m, n, alternate, n_blocks, n_warps, NULL, &alone, &err), &err);
    assert_true(alone.size == l.size);
    assert_ok(gpu_layout_write(&alone, NULL, again, &err), &err);
    assert_memory_equal(data, again, l.size);
    gpu_layout_free(&alone);

    struct decoded d = {.l = &l};
    d.w = calloc((size_t)l.rows * l.n_in, sizeof *d.w);
    float *row = calloc(l.n_in, sizeof *row);
    assert_non_null(d.w);
    assert_non_null(row);
    decode(&d, data);
    for (uint32_t r = 0; r < l.rows; r++) {
        int64_t at;
        int i = gpu_layout_row(&l, r, &at);
        mdcsr_decode_row(m[i], at, row);
        for (uint32_t c = 0; c < l.n_in; c++) {
            float got = d.w[(size_t)r * l.n_in + c];
            if (fabsf(got - row[c]) > 1e-6f * fabsf(row[c]))
                fail_msg("row %u column %u: %g instead of %g (values %d, %u gap bits, group %u)", r,
                         c, (double)got, (double)row[c], (int)l.coding[i].values,
                         l.coding[i].gap_bits, l.coding[i].group);
        }
    }
    free(row);
    free(d.w);
    free(data);
    free(again);
    gpu_layout_free(&l);
    pd_threads_free(threads);
}

static void check_options(const struct mdcsr_options *o, int64_t rows, int64_t cols, double density,
                          uint64_t seed) {
    float *w[3];
    struct mdcsr m[3];
    pdvm_error err;
    for (int i = 0; i < 3; i++) {
        w[i] = random_weights(rows, cols, density, &seed);
        assert_ok(mdcsr_encode(w[i], rows, cols, o, NULL, &m[i], NULL, &err), &err);
        free(w[i]);
    }
    const struct mdcsr *p[3] = {&m[0], &m[1], &m[2]};
    check(p, 1, false, 3, 4);
    check(p, 2, true, 5, 2);
    check(p, 3, false, 2, 16);
    for (int i = 0; i < 3; i++) mdcsr_free(&m[i]);
}

static void every_weight_comes_back(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{1, 1}, {7, 63}, {40, 200}, {33, 1000}, {9, 3000}};
    static const double densities[] = {0.02, 0.1, 0.5, 0.9, 1.0};
    for (int v = 0; v < MDCSR_N_VALUES; v++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
            for (size_t d = 0; d < sizeof densities / sizeof *densities; d++)
                for (uint32_t group = 0; group <= 256; group = group ? group * 2 : 32) {
                    if (group && v < MDCSR_INT8) continue;
                    struct mdcsr_options o = {.values = (enum mdcsr_values)v,
                                              .codebook = MDCSR_LEARNED,
                                              .index_auto = true,
                                              .group = group};
                    if (v != MDCSR_LUT4 && v != MDCSR_LUT8) o.codebook = MDCSR_LINEAR;
                    check_options(&o, shapes[s][0], shapes[s][1], densities[d],
                                  7 + s + 10 * d + 100 * (unsigned)v);
                }
}

static void warps_read_nearly_the_same_number_of_bytes(void **state) {
    (void)state;
    uint64_t seed = 5;
    struct mdcsr m;
    struct gpu_layout l;
    pdvm_error err;
    float *w = calloc(2048 * 2048, sizeof *w);
    assert_non_null(w);
    for (size_t i = 0; i < 2048 * 2048; i++)
        if (pd_random(&seed) % 2) w[i] = (float)(pd_random_unit(&seed) - 0.5);
    struct mdcsr_options o = {.values = MDCSR_INT8, .index_auto = true};
    assert_ok(mdcsr_encode(w, 2048, 2048, &o, NULL, &m, NULL, &err), &err);
    const struct mdcsr *p = &m;
    assert_ok(gpu_layout_create(&p, 1, false, 16, 16, NULL, &l, &err), &err);
    uint64_t most = 0;
    for (uint32_t s = 0; s < 256; s++) {
        uint64_t bytes = 16 * (uint64_t)(l.streams[s + 1] - l.streams[s]);
        if (bytes > most) most = bytes;
    }
    double mean = (double)l.size / 256;
    if ((double)most > 1.05 * mean) fail_msg("%llu of %g", (unsigned long long)most, mean);
    // 2 bits of gap, 8 of value, and a few percent for bridges, headers and filling up
    assert_true((double)l.size * 8 / (2048.0 * 2048) < 5.7);
    gpu_layout_free(&l);
    mdcsr_free(&m);
    free(w);
}

// How often the lanes of a warp have to wait for each other's words in banked memory.
struct banks {
    double gathers;
    double wavefronts; // a gather takes as many as there are different words in its busiest bank
};

// Different words of a bank among those that 32 lanes read at once, in the busiest one.
static uint32_t busiest_bank(const uint32_t words[32], uint32_t banks) {
    uint32_t count[32] = {0}, most = 0;
    for (uint32_t i = 0; i < 32; i++) {
        bool seen = false;
        for (uint32_t j = 0; j < i && !seen; j++) seen = words[j] == words[i];
        if (seen) continue;
        uint32_t n = ++count[words[i] % banks];
        if (n > most) most = n;
    }
    return most;
}

static void count_banks(const struct gpu_task *t, const uint8_t *p, struct banks *b) {
    const struct gpu_coding c = {
        .values = (enum gpu_values)t->values, .gap_bits = t->gap_bits, .group = t->group};
    uint32_t next[32], words[32];
    for (uint32_t lane = 0; lane < 32; lane++) next[lane] = t->col[lane];
    for (uint32_t k = 0; k < t->length; k++, p += 32 * gpu_coding_chunk_bytes(&c))
        for (uint32_t i = 0; i < 16; i++) {
            for (uint32_t lane = 0; lane < 32; lane++) {
                uint32_t code =
                    gap_of(p + 32 * (t->values == GPU_INT8 ? 16 : 8), t->gap_bits, lane, i);
                if (t->flags & GPU_TASK_SKIP && code == (1u << t->gap_bits) - 1) code = 0;
                words[lane] = (next[lane] + code) / 2; // activations have 16 bits
                next[lane] += code + 1;
            }
            b->gathers++;
            b->wavefronts += busiest_bank(words, 32);
        }
}

// Dense: lanes read 16 bytes at a time, from four banks; as at column 0 in the whole chunk.
static void count_dense_banks(const struct gpu_task *t, struct banks *b) {
    uint32_t words[32];
    for (uint32_t lane = 0; lane < 32; lane++) words[lane] = t->col[lane] / 8;
    b->gathers += t->length;
    b->wavefronts += t->length * busiest_bank(words, 8);
}

static struct banks simulate_banks(const struct gpu_layout *l, const uint8_t *data) {
    struct banks b = {0, 0};
    for (const uint8_t *p = data; p < data + l->size;) {
        struct gpu_task t;
        memcpy(&t, p, sizeof t);
        const struct gpu_coding c = {
            .values = (enum gpu_values)t.values, .gap_bits = t.gap_bits, .group = t.group};
        if (t.gap_bits == 0)
            count_dense_banks(&t, &b);
        else
            count_banks(&t, p + sizeof t, &b);
        p += sizeof t + 32 * (uint64_t)t.length * gpu_coding_chunk_bytes(&c);
    }
    return b;
}

// One block of rows whose densities differ by up to `spread` of their mean; with `waves`, the
// columns' densities do, too.
static void encode_block(int64_t rows, int64_t cols, double zeros, double spread, bool waves,
                         const struct mdcsr_options *o, struct mdcsr *m) {
    uint64_t seed = 11;
    pdvm_error err;
    float *w = calloc((size_t)(rows * cols), sizeof *w);
    assert_non_null(w);
    for (int64_t r = 0; r < rows; r++) {
        double density = (1 - zeros) * (1 + spread * (2 * pd_random_unit(&seed) - 1));
        for (int64_t c = 0; c < cols; c++) {
            double d = waves ? density * (1 + 0.5 * sin((double)c * 0.002)) : density;
            if (pd_random_unit(&seed) < d) w[r * cols + c] = (float)(pd_random_unit(&seed) + 0.1);
        }
    }
    assert_ok(mdcsr_encode(w, rows, cols, o, NULL, m, NULL, &err), &err);
    free(w);
}

// Wavefronts of a gather where one block of 16 warps has the rows; `padding`: bytes for each one
// that the entries, with those that bridge gaps, take at least.
static double wavefronts(const struct mdcsr *m, double *padding) {
    struct gpu_layout l;
    pdvm_error err;
    assert_ok(gpu_layout_create(&m, 1, false, 1, 16, NULL, &l, &err), &err);
    uint8_t *data = malloc(l.size);
    assert_non_null(data);
    assert_ok(gpu_layout_write(&l, NULL, data, &err), &err);
    struct banks b = simulate_banks(&l, data);
    *padding = (double)l.size / ((double)l.n_slots * gpu_coding_chunk_bytes(&l.coding[0]) / 16);
    free(data);
    gpu_layout_free(&l);
    return b.wavefronts / b.gathers;
}

static void lanes_seldom_wait_for_a_bank(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{38, 5120}, {116, 5120}, {38, 13824}, {116, 13824}};
    static const struct {
        enum mdcsr_values values;
        uint32_t group;
        double zeros, spread;
        bool waves;
        double wavefronts; // at most; lanes that walk on their own take 3.4
        double padding;
    } cases[] = {
        {MDCSR_INT8, 0, 0.5, 0, false, 1.5, 1.08},   {MDCSR_INT8, 0, 0.7, 0, false, 2.0, 1.1},
        {MDCSR_INT8, 0, 0.5, 0.3, false, 1.6, 1.22}, {MDCSR_INT8, 0, 0.7, 0.3, false, 2.0, 1.22},
        {MDCSR_INT8, 0, 0.5, 0, true, 1.5, 1.08},    {MDCSR_LUT4, 0, 0.5, 0, false, 1.5, 1.1},
        {MDCSR_INT8, 64, 0.5, 0, false, 2.0, 1.22},  {MDCSR_INT8, 0, 0, 0, false, 2.0, 1.05},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            struct mdcsr m;
            struct mdcsr_options o = {
                .values = cases[i].values, .index_auto = true, .group = cases[i].group};
            encode_block(shapes[s][0], shapes[s][1], cases[i].zeros, cases[i].spread,
                         cases[i].waves, &o, &m);
            double padding, found = wavefronts(&m, &padding);
            if (found > cases[i].wavefronts || padding > cases[i].padding)
                fail_msg("%lld x %lld, case %zu: %g wavefronts, %g times the bytes",
                         (long long)shapes[s][0], (long long)shapes[s][1], i, found, padding);
            mdcsr_free(&m);
        }
}

static void too_many_columns_are_refused(void **state) {
    (void)state;
    struct mdcsr m;
    struct gpu_layout l;
    pdvm_error err;
    float *w = calloc(70000, sizeof *w);
    assert_non_null(w);
    w[3] = 1;
    struct mdcsr_options o = {.values = MDCSR_INT8, .index_auto = true};
    assert_ok(mdcsr_encode(w, 1, 70000, &o, NULL, &m, NULL, &err), &err);
    const struct mdcsr *p = &m;
    assert_int_equal(gpu_layout_create(&p, 1, false, 1, 1, NULL, &l, &err), PDVM_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.message, "70000 columns"));
    mdcsr_free(&m);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_weight_comes_back),
        cmocka_unit_test(warps_read_nearly_the_same_number_of_bytes),
        cmocka_unit_test(lanes_seldom_wait_for_a_bank),
        cmocka_unit_test(too_many_columns_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
