#include "model/source_synthetic.h"

#include "base/alloc.h"
#include "base/half.h"
#include "base/hash.h"
#include "base/random.h"
#include "base/threads.h"
#include "mdcsr/book.h"
#include "mdcsr/layout.h"
#include "model/encoding.h"
#include "model/shapes.h"

#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Standard deviation of the int8 codes: values of four deviations would just be clipped. */
#define CODE_DEVIATION 32.0
/* Rows have up to this share more or fewer entries than their average. */
#define ROW_SPREAD 0.04
/* Bytes of values that one worker makes at a time. */
#define VALUES_CHUNK ((size_t)1 << 16)

struct source_synthetic {
    struct model_source base;
    struct synthetic_options options; /* shape is not kept */
    char *config_json;
    struct pd_threads *threads;
    pthread_mutex_t lock; /* the team makes one matrix at a time */
    float normal[256];    /* equally likely values of a standard normal distribution */
    int8_t codes[256];    /* the same times CODE_DEVIATION, rounded away from 0 */
};

/* An independent stream of random numbers: states that are near each other would overlap. */
static uint64_t stream(uint64_t seed, uint64_t number) {
    uint64_t state = seed + number * 0x2545f4914f6cdd1du;
    return pd_random(&state);
}

/* The inverse of the standard normal distribution function. */
static double normal_quantile(double p) {
    double low = -10, high = 10;
    for (int i = 0; i < 60; i++) {
        double middle = 0.5 * (low + high);
        if (0.5 * erfc(-middle / sqrt(2)) < p)
            low = middle;
        else
            high = middle;
    }
    return 0.5 * (low + high);
}

static void fill_tables(struct source_synthetic *s) {
    for (int i = 0; i < 256; i++) {
        double x = normal_quantile((i + 0.5) / 256);
        s->normal[i] = (float)x;
        s->codes[i] = (int8_t)(x < 0 ? -ceil(-x * CODE_DEVIATION) : ceil(x * CODE_DEVIATION));
    }
}

/* Codebooks as the encoder makes them: evenly spaced, or 16 values of a normal distribution; the second
 * ones, for dense matrices, have an exact zero. */
static const int8_t book4[2][2][16] = {
    {{-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15},
     {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}},
    {{-127, -97, -76, -59, -45, -32, -20, -8, 8, 20, 32, 45, 59, 76, 97, 127},
     {-127, -97, -76, -59, -45, -32, -20, -10, 0, 12, 25, 39, 54, 72, 94, 127}}};

/* ---- one matrix ------------------------------------------------------------------------ */

/* What the loops share. */
struct making {
    const struct source_synthetic *s;
    struct mdcsr *m;
    uint8_t *values, *index;
    uint64_t seed; /* of this matrix */
    double deviation;
    int threshold; /* of 256: the density before rows are corrected */
};

/* Entries of row r when rows have `mean` on average. Each two rows vary in opposite directions. */
static int64_t row_count(const struct making *k, int64_t r, double mean) {
    int64_t cols = k->m->cols, n = (int64_t)(mean * (double)(r + 1)) - (int64_t)(mean * (double)r);
    double room = mean < (double)cols - mean ? mean : (double)cols - mean;
    if ((r | 1) < k->m->rows) {
        uint64_t state = stream(k->seed ^ 0x5eed, (uint64_t)r / 2);
        int64_t vary = (int64_t)(ROW_SPREAD * room * pd_random_unit(&state));
        n += r & 1 ? -vary : vary;
    }
    return n < 0 ? 0 : n > cols ? cols : n;
}

/* 64 bits, each set with probability threshold / 256 (threshold in 1..255). */
static inline uint64_t random_bits(uint64_t *state, int threshold) {
    uint64_t word = 0;
    /* The binary fraction of the threshold from its last digit: a 1 is a random OR, a 0 an AND. */
    for (int bit = __builtin_ctz((unsigned)threshold); bit < 8; bit++) {
        uint64_t r = pd_random(state);
        word = threshold >> bit & 1 ? word | r : word & r;
    }
    return word;
}

static void make_mask_row(const struct making *k, int64_t r) {
    int64_t cols = k->m->cols;
    int64_t want = k->m->row_offsets[r + 1] - k->m->row_offsets[r], have = 0;
    size_t stride = mdcsr_bitmap_stride(cols);
    uint8_t *row = k->index + (size_t)r * stride;
    uint64_t state = stream(k->seed, (uint64_t)r);
    for (size_t at = 0; at < stride; at += 8) {
        uint64_t word = k->threshold == 0    ? 0
                        : k->threshold > 255 ? ~(uint64_t)0
                                             : random_bits(&state, k->threshold);
        int64_t left = cols - 8 * (int64_t)at;
        if (left < 64) word &= ((uint64_t)1 << left) - 1;
        have += __builtin_popcountll(word);
        uint8_t bytes[8];
        for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(word >> (8 * i));
        memcpy(row + at, bytes, stride - at < 8 ? stride - at : 8);
    }
    while (have != want) {
        uint64_t c = (uint64_t)(pd_random_unit(&state) * (double)cols);
        uint8_t bit = (uint8_t)(1u << (c & 7));
        bool set = row[c >> 3] & bit;
        if (set == (have < want)) continue;
        row[c >> 3] ^= bit;
        have += set ? -1 : 1;
    }
}

static void make_mask_rows(void *arg, int64_t begin, int64_t end, int worker) {
    (void)worker;
    for (int64_t r = begin; r < end; r++) make_mask_row(arg, r);
}

/* 8 bytes of values, from random bits. */
static inline uint64_t value_bytes(const struct making *k, uint64_t random) {
    uint8_t bytes[8];
    uint64_t word = random;
    switch (k->m->value_coding) {
    case MDCSR_INT8:
        for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)k->s->codes[random >> (8 * i) & 255];
        memcpy(&word, bytes, sizeof word);
        break;
    case MDCSR_BF16:
    case MDCSR_F16:
        for (int i = 0; i < 4; i++) {
            float x = k->s->normal[random >> (8 * i) & 255] * (float)k->deviation;
            uint16_t half =
                k->m->value_coding == MDCSR_F16 ? pd_float_to_f16(x) : pd_float_to_bf16(x);
            memcpy(bytes + 2 * i, &half, sizeof half);
        }
        memcpy(&word, bytes, sizeof word);
        break;
    case MDCSR_F32:
        for (int i = 0; i < 2; i++) {
            float x = k->s->normal[random >> (8 * i) & 255] * (float)k->deviation;
            memcpy(bytes + 4 * i, &x, sizeof x);
        }
        memcpy(&word, bytes, sizeof word);
        break;
    default: break; /* LUT8 and LUT4: any code */
    }
    return word;
}

static void make_values(void *arg, int64_t begin, int64_t end, int worker) {
    const struct making *k = arg;
    (void)worker;
    for (int64_t chunk = begin; chunk < end; chunk++) {
        uint64_t state = stream(~k->seed, (uint64_t)chunk);
        size_t at = (size_t)chunk * VALUES_CHUNK, stop = at + VALUES_CHUNK;
        if (stop > k->m->values_size) stop = k->m->values_size;
        for (; at < stop; at += 8) {
            uint64_t word = value_bytes(k, pd_random(&state));
            memcpy(k->values + at, &word, stop - at < 8 ? stop - at : 8);
        }
    }
}

/* The standard deviation of the coded values at scale 1. */
static double code_deviation(const struct source_synthetic *s, const struct mdcsr *m) {
    double sum = 0;
    int n = m->value_coding == MDCSR_LUT4 ? 16 : 256;
    for (int i = 0; i < n; i++) {
        double x = m->value_coding == MDCSR_INT8 ? s->codes[i] : (double)m->codebook[i];
        sum += x * x / n;
    }
    return sqrt(sum);
}

/* Standard deviation of the values that gives products of the size of residual activations. */
static double value_deviation(const struct source_synthetic *s, const struct tensor_info *t,
                              double density) {
    if (t->role == TENSOR_EMBED && !s->base.config.tie_word_embeddings) return 1;
    double d = 1 / sqrt((double)t->cols * (density > 0 ? density : 1));
    /* What is added to the residual stream must not let it grow with the depth of the model. */
    if (t->role == TENSOR_O || t->role == TENSOR_DOWN) d /= sqrt(2.0 * s->base.config.n_layers);
    return d;
}

static pdvm_status make_scales(struct making *k, pdvm_error *err) {
    struct mdcsr *m = k->m;
    size_t n = (size_t)m->rows * (size_t)m->n_groups;
    double base = k->deviation / code_deviation(k->s, m);
    uint64_t state = stream(k->seed, UINT64_MAX);
    PD_TRY(pd_calloc(&m->scales, n, sizeof *m->scales, "scales", err));
    for (size_t i = 0; i < n; i++) {
        float scale = (float)(base * (0.75 + 0.5 * pd_random_unit(&state)));
        m->scales[i] = m->group ? mdcsr_bf16_up(scale) : scale;
    }
    return PDVM_OK;
}

static pdvm_status make_index(struct making *k, double density, pdvm_error *err) {
    struct mdcsr *m = k->m;
    m->index_coding = MDCSR_BITMAP;
    m->index_size = (size_t)m->rows * mdcsr_bitmap_stride(m->cols);
    PD_TRY(pd_alloc_aligned(&k->index, m->index_size, "a bitmap", err));
    m->index = k->index;
    PD_TRY(pd_calloc(&m->row_offsets, (size_t)m->rows + 1, sizeof *m->row_offsets, "row offsets",
                     err));
    for (int64_t r = 0; r < m->rows; r++)
        m->row_offsets[r + 1] = m->row_offsets[r] + row_count(k, r, density * (double)m->cols);
    m->n_entries = m->row_offsets[m->rows];
    k->threshold = (int)(density * 256 + 0.5);
    pd_threads_for(k->s->threads, m->rows, ((int64_t)1 << 20) / m->cols + 1, make_mask_rows, k);
    return PDVM_OK;
}

/* What becomes of a tensor: as `convert` does it, embedding and head stay dense. */
static struct mdcsr_options coding_of(const struct source_synthetic *s, const struct tensor_info *t,
                                      double *density) {
    bool embedding = tensor_is_vocabulary(t->role);
    struct mdcsr_options o = encoding_default(t->role, s->options.values);
    o.group = mdcsr_has_scales(o.values) && !embedding ? s->options.group : 0;
    *density = embedding ? 1 : 1 - s->options.sparsity;
    return o;
}

static pdvm_status make_matrix(const struct source_synthetic *s, const struct tensor_info *t,
                               struct mdcsr *m, pdvm_error *err) {
    double density;
    struct mdcsr_options o = coding_of(s, t, &density);
    struct making k = {
        .s = s,
        .m = m,
        .deviation = value_deviation(s, t, density),
        .seed = stream(s->options.seed, pd_hash(PD_HASH_INIT, t->name, strlen(t->name)))};
    m->rows = t->rows;
    m->cols = t->cols;
    m->value_coding = o.values;
    const bool linear = o.values == MDCSR_LUT4 && s->options.codebook == MDCSR_LINEAR;
    m->codebook_kind = linear ? MDCSR_LINEAR : MDCSR_LEARNED;
    m->group = o.group;
    m->n_groups = mdcsr_groups(o.values, t->cols, o.group);
    m->n_entries = m->rows * m->cols;
    m->owned = true;
    for (int i = 0; i < 16 && o.values == MDCSR_LUT4; i++)
        m->codebook[i] = (float)book4[!linear][density >= 1][i];
    for (int i = 0; i < 256 && o.values == MDCSR_LUT8; i++)
        m->codebook[i] = i == 128 ? 0 : s->normal[i];
    if (density < 1) PD_TRY(make_index(&k, density, err));
    m->values_size = mdcsr_values_bytes(o.values, m->n_entries);
    PD_TRY(pd_alloc_aligned(&k.values, m->values_size, "weights", err));
    m->values = k.values;
    if (mdcsr_has_scales(o.values)) PD_TRY(make_scales(&k, err));
    pd_threads_for(s->threads, (int64_t)((m->values_size + VALUES_CHUNK - 1) / VALUES_CHUNK), 4,
                   make_values, &k);
    /* The nibble behind the last one is padding. */
    if (o.values == MDCSR_LUT4 && m->n_entries % 2) k.values[m->values_size - 1] &= 15;
    return PDVM_OK;
}

/* ---- the source ------------------------------------------------------------------------ */

static pdvm_status synthetic_read_mdcsr(struct model_source *base, const struct tensor_info *t,
                                        struct mdcsr *out, pdvm_error *err) {
    struct source_synthetic *s = (struct source_synthetic *)base;
    *out = (struct mdcsr){0};
    pthread_mutex_lock(&s->lock);
    pdvm_status status = make_matrix(s, t, out, err);
    pthread_mutex_unlock(&s->lock);
    if (status != PDVM_OK) mdcsr_free(out);
    return status;
}

static bool is_norm(enum tensor_role role) {
    return role == TENSOR_INPUT_NORM || role == TENSOR_POST_NORM || role == TENSOR_FINAL_NORM ||
           role == TENSOR_Q_NORM || role == TENSOR_K_NORM;
}

static pdvm_status synthetic_read_rows(struct model_source *base, const struct tensor_info *t,
                                       int64_t begin, int64_t n, float *out, pdvm_error *err) {
    struct source_synthetic *s = (struct source_synthetic *)base;
    if (t->is_matrix) {
        struct mdcsr m;
        PD_TRY(synthetic_read_mdcsr(base, t, &m, err));
        for (int64_t r = 0; r < n; r++) mdcsr_decode_row(&m, begin + r, out + r * t->cols);
        mdcsr_free(&m);
        return PDVM_OK;
    }
    uint64_t state = stream(s->options.seed, pd_hash(PD_HASH_INIT, t->name, strlen(t->name)));
    float mean = is_norm(t->role) ? 1 : 0;
    for (int64_t i = 0; i < n * t->cols; i++)
        out[i] = mean + 0.1f * s->normal[pd_random(&state) >> 56];
    return PDVM_OK;
}

static void synthetic_file(struct model_source *base, const char *name, const char **data,
                           size_t *size) {
    const struct source_synthetic *s = (struct source_synthetic *)base;
    *data = strcmp(name, SOURCE_CONFIG) == 0 ? s->config_json : NULL;
    *size = *data ? strlen(*data) : 0;
}

static uint64_t matrix_bytes(const struct source_synthetic *s, const struct tensor_info *t,
                             enum mdcsr_values *values) {
    double density, positions = (double)t->rows * (double)t->cols;
    struct mdcsr_options o = coding_of(s, t, &density);
    *values = o.values;
    double bits = o.values == MDCSR_LUT4 ? 4 : 8.0 * (double)mdcsr_entry_size(o.values);
    double scales =
        (double)t->rows * (double)mdcsr_groups(o.values, t->cols, o.group) * sizeof(float);
    return (uint64_t)(positions * (bits * density + (density < 1 ? 1 : 0)) / 8 + scales);
}

static void synthetic_stored(struct model_source *base, const struct tensor_info *t,
                             const char **coding, uint64_t *bytes) {
    enum mdcsr_values values = MDCSR_F32;
    *bytes = t->is_matrix ? matrix_bytes((struct source_synthetic *)base, t, &values)
                          : (uint64_t)t->cols * sizeof(float);
    *coding = mdcsr_values_name(values);
}

static void synthetic_release(struct model_source *base, const struct tensor_info *t) {
    (void)base;
    (void)t;
}

static void synthetic_close(struct model_source *base) {
    struct source_synthetic *s = (struct source_synthetic *)base;
    pd_threads_free(s->threads);
    pthread_mutex_destroy(&s->lock);
    free(s->config_json);
    free(s->base.path);
    free(s);
}

static const struct model_source_ops synthetic_ops = {
    .read_rows = synthetic_read_rows,
    .read_mdcsr = synthetic_read_mdcsr,
    .file = synthetic_file,
    .stored = synthetic_stored,
    .release = synthetic_release,
    .close = synthetic_close,
};

static pdvm_status check_options(const struct synthetic_options *o, pdvm_error *err) {
    if (!(o->sparsity >= 0 && o->sparsity <= 1))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "sparsity %g: it is the share of zeros, from 0 (dense) to 1", o->sparsity);
    if ((unsigned)o->values >= MDCSR_N_VALUES)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "unknown values %d", (int)o->values);
    if (!mdcsr_group_valid(o->group))
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "groups of %u columns: 0 (one scale per row), 32, 64, 128 or 256", o->group);
    return PDVM_OK;
}

static pdvm_status open_into(struct source_synthetic *s, const char *shape, pdvm_error *err) {
    PD_TRY(shape_config(shape, &s->config_json, err));
    pdvm_status status = model_config_parse(SOURCE_CONFIG, s->config_json, strlen(s->config_json),
                                            &s->base.config, err);
    if (status != PDVM_OK) return pd_prefix(err, status, "shape %s", shape);
    char path[256];
    int n = snprintf(path, sizeof path, "synthetic:%.100s:%s:%g:%u:%" PRIu64, shape,
                     mdcsr_values_name(s->options.values), s->options.sparsity, s->options.group,
                     s->options.seed);
    PD_TRY(pd_calloc(&s->base.path, (size_t)n + 1, 1, "a name", err));
    memcpy(s->base.path, path, (size_t)n);
    s->base.fingerprint = pd_hash(PD_HASH_INIT, path, (size_t)n);
    s->base.fingerprint = pd_hash(s->base.fingerprint, s->config_json, strlen(s->config_json));
    fill_tables(s);
    return pd_threads_create(0, &s->threads, err);
}

pdvm_status source_open_synthetic(const struct synthetic_options *options,
                                  struct model_source **out, pdvm_error *err) {
    struct source_synthetic *s;
    *out = NULL;
    PD_TRY(check_options(options, err));
    PD_TRY(pd_calloc(&s, 1, sizeof *s, "a source", err));
    s->base.ops = &synthetic_ops;
    s->base.kind = "synthetic model";
    s->options = *options;
    s->options.shape = NULL;
    pthread_mutex_init(&s->lock, NULL);
    pdvm_status status = open_into(s, options->shape, err);
    if (status != PDVM_OK) {
        synthetic_close(&s->base);
        return status;
    }
    *out = &s->base;
    return PDVM_OK;
}
