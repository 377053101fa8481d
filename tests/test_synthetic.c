// Shapes of well-known models and synthetic weights: valid, of the asked-for sparsity, repeatable.
#include "engine/engine.h"
#include "model/encoding.h"
#include "model/shapes.h"
#include "model/source_synthetic.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct model_source *open_synthetic(const char *shape, enum mdcsr_values values,
                                           double sparsity, uint32_t group, uint64_t seed) {
    const struct synthetic_options options = {
        .shape = shape, .sparsity = sparsity, .values = values, .group = group, .seed = seed};
    struct model_source *s;
    pdvm_error err;
    assert_ok(source_open_synthetic(&options, &s, &err), &err);
    return s;
}

static void read_matrix(struct model_source *s, enum tensor_role role, struct mdcsr *m) {
    struct tensor_info t;
    pdvm_error err;
    tensors_describe(&s->config, role, 1, &t);
    assert_ok(source_read_mdcsr(s, &t, m, &err), &err);
    assert_int_equal(m->rows, t.rows);
    assert_int_equal(m->cols, t.cols);
}

/* Sizes that are no multiples of anything. */
#define ODD_SHAPE "hidden=130,layers=2,intermediate=333,heads=3,kv-heads=1,head-dim=42,vocab=101"

static void matrices_pass_the_check_of_files_in_every_coding(void **state) {
    static const double sparsities[] = {0, 0.003, 0.5, 0.77, 0.999, 1};
    (void)state;
    for (int v = 0; v < MDCSR_N_VALUES; v++) {
        for (size_t i = 0; i < sizeof sparsities / sizeof *sparsities; i++) {
            bool scaled = v == MDCSR_INT8 || v == MDCSR_LUT8 || v == MDCSR_LUT4;
            struct model_source *s = open_synthetic(ODD_SHAPE, (enum mdcsr_values)v, sparsities[i],
                                                    scaled && i % 2 ? 64 : 0, 7);
            for (enum tensor_role role = 0; role < TENSOR_N_ROLES; role++) {
                struct tensor_info t;
                struct mdcsr m;
                pdvm_error err;
                tensors_describe(&s->config, role, 1, &t);
                if (!t.is_matrix || !tensors_has(&s->config, role)) continue;
                read_matrix(s, role, &m);
                assert_ok(mdcsr_check(&m, &err), &err);
                mdcsr_free(&m);
            }
            source_close(s);
        }
    }
}

static void rows_have_the_sparsity_to_a_few_per_cent_and_matrices_exactly(void **state) {
    (void)state;
    struct model_source *s = open_synthetic("tiny", MDCSR_INT8, 0.7, 0, 3);
    struct mdcsr m;
    read_matrix(s, TENSOR_DOWN, &m);
    double want = 0.3 * (double)m.cols;
    int64_t least = m.cols, most = 0;
    for (int64_t r = 0; r < m.rows; r++) {
        int64_t n = mdcsr_row_entries(&m, r);
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    assert_true(fabs((double)m.n_entries - want * (double)m.rows) <= 1);
    assert_true((double)least >= 0.95 * want - 1 && (double)most <= 1.05 * want + 1);
    assert_true(least < most); /* as in real models, rows differ */
    mdcsr_free(&m);
    source_close(s);
}

static void columns_and_values_are_spread_evenly(void **state) {
    (void)state;
    struct model_source *s = open_synthetic("tiny", MDCSR_INT8, 0.5, 0, 3);
    struct mdcsr m;
    read_matrix(s, TENSOR_UP, &m);
    uint32_t *cols = calloc((size_t)m.cols, sizeof *cols);
    int8_t *codes = calloc((size_t)m.cols, 1);
    int counts[256] = {0}, seen[256] = {0};
    assert_non_null(cols);
    assert_non_null(codes);
    for (int64_t r = 0; r < m.rows; r++) {
        int64_t n = mdcsr_row_columns(&m, r, cols);
        mdcsr_row_entries_raw(&m, r, codes);
        for (int64_t i = 0; i < n; i++) {
            counts[cols[i]]++;
            seen[(uint8_t)codes[i]]++;
            assert_int_not_equal(codes[i], 0);
        }
    }
    /* A binomial count of 704 rows at one half: far outside 8 standard deviations never happens. */
    for (int64_t c = 0; c < m.cols; c++) assert_in_range(counts[c], 352 - 106, 352 + 106);
    int kinds = 0;
    for (int i = 0; i < 256; i++) kinds += seen[i] > 0;
    assert_true(kinds > 100);
    free(cols);
    free(codes);
    mdcsr_free(&m);
    source_close(s);
}

/* Whether two sources give the same matrix. */
static bool same(struct model_source *a, struct model_source *b, enum tensor_role role) {
    struct mdcsr x, y;
    read_matrix(a, role, &x);
    read_matrix(b, role, &y);
    bool equal = x.values_size == y.values_size && x.index_size == y.index_size &&
                 memcmp(x.values, y.values, x.values_size) == 0 &&
                 memcmp(x.index, y.index, x.index_size) == 0 &&
                 memcmp(x.scales, y.scales, (size_t)(x.rows * x.n_groups) * sizeof(float)) == 0;
    mdcsr_free(&x);
    mdcsr_free(&y);
    return equal;
}

static void the_seed_decides_the_model(void **state) {
    (void)state;
    struct model_source *a = open_synthetic("tiny", MDCSR_LUT4, 0.6, 64, 11);
    struct model_source *b = open_synthetic("tiny", MDCSR_LUT4, 0.6, 64, 11);
    struct model_source *c = open_synthetic("tiny", MDCSR_LUT4, 0.6, 64, 12);
    struct mdcsr gate, up;
    assert_true(same(a, b, TENSOR_GATE));
    assert_true(same(a, a, TENSOR_DOWN));
    assert_false(same(a, c, TENSOR_GATE));
    assert_true(a->fingerprint == b->fingerprint && a->fingerprint != c->fingerprint);
    /* Matrices of one shape are different matrices. */
    read_matrix(a, TENSOR_GATE, &gate);
    read_matrix(a, TENSOR_UP, &up);
    assert_memory_not_equal(gate.index, up.index, gate.index_size);
    mdcsr_free(&gate);
    mdcsr_free(&up);
    source_close(a);
    source_close(b);
    source_close(c);
}

static void rows_read_are_rows_of_the_matrix(void **state) {
    (void)state;
    struct model_source *s = open_synthetic(ODD_SHAPE, MDCSR_F16, 0.4, 0, 5);
    struct tensor_info t;
    struct mdcsr m;
    pdvm_error err;
    float rows[2 * 333], expected[333];
    tensors_describe(&s->config, TENSOR_DOWN, 1, &t);
    assert_ok(source_read_rows(s, &t, 3, 2, rows, &err), &err);
    read_matrix(s, TENSOR_DOWN, &m);
    mdcsr_decode_row(&m, 4, expected);
    assert_memory_equal(rows + 333, expected, sizeof expected);
    mdcsr_free(&m);
    assert_error(source_read_rows(s, &t, t.rows - 1, 2, rows, &err), PDVM_ERR_ARGUMENT, &err,
                 "down_proj");
    source_close(s);
}

static void embedding_and_head_stay_dense_int8(void **state) {
    (void)state;
    struct model_source *s = open_synthetic("tiny", MDCSR_LUT4, 0.9, 64, 5);
    struct mdcsr m;
    for (int i = 0; i < 2; i++) {
        read_matrix(s, i ? TENSOR_HEAD : TENSOR_EMBED, &m);
        assert_int_equal(m.index_coding, MDCSR_DENSE);
        assert_int_equal(m.value_coding, MDCSR_INT8);
        mdcsr_free(&m);
    }
    source_close(s);
}

/* Every known shape opens; and small ones run: logits are finite and of ordinary size. */
static void activations_stay_of_normal_size(void **state) {
    static const struct {
        const char *shape;
        enum mdcsr_values values;
        double sparsity;
    } models[] = {{"tiny", MDCSR_INT8, 0.5},
                  {"tiny", MDCSR_LUT4, 0.9},
                  {"tiny", MDCSR_LUT8, 0},
                  {"tiny", MDCSR_BF16, 0.3},
                  {ODD_SHAPE, MDCSR_INT8, 1},
                  {"hidden=192,layers=40,vocab=100,arch=qwen3", MDCSR_INT8, 0.7},
                  {"hidden=192,layers=3,vocab=100,arch=qwen2,tied=1", MDCSR_F32, 0.7}};
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct model_source *s =
            open_synthetic(models[i].shape, models[i].values, models[i].sparsity, 0, i);
        pdvm_model *model;
        pdvm_session *session;
        pdvm_error err;
        int32_t tokens[20];
        size_t n_vocab;
        double squares = 0;
        assert_ok(model_open_source(s, NULL, &model, &err), &err);
        pdvm_session_options options = pdvm_session_options_default();
        options.n_ctx = 32;
        assert_ok(pdvm_session_create(model, &options, &session, &err), &err);
        for (int t = 0; t < 20; t++) tokens[t] = 5 * t;
        assert_ok(pdvm_session_sync(session, tokens, 20, &err), &err);
        const float *logits = pdvm_session_logits(session, &n_vocab);
        for (size_t k = 0; k < n_vocab; k++) {
            assert_true(isfinite(logits[k]));
            squares += (double)logits[k] * logits[k] / (double)n_vocab;
        }
        assert_true(squares > 0.1 && squares < 10);
        pdvm_session_free(session);
        pdvm_model_close(model);
    }
}

static void every_known_shape_opens_without_memory_for_its_weights(void **state) {
    const char *name;
    (void)state;
    for (size_t i = 0; (name = shape_name(i)); i++) {
        struct model_source *s = open_synthetic(name, MDCSR_INT8, 0.5, 0, 1);
        assert_true(encoding_bytes(s, MDCSR_INT8) > 1000000);
        source_close(s);
    }
    struct model_source *s = open_synthetic("llama2-13b", MDCSR_LUT4, 0.5, 0, 1);
    assert_true(encoding_bytes(s, MDCSR_INT8) > 4500000000 &&
                encoding_bytes(s, MDCSR_INT8) < 5500000000);
    source_close(s);
}

static void wrong_shapes_and_options_are_explained(void **state) {
    static const struct {
        const char *shape, *message;
    } shapes[] = {{"llama2-14b", "tinyllama-1.1b"},
                  {"", "known are"},
                  {"hidden=64", "layers are needed"},
                  {"hidden=64,layers=", "FIELD=NUMBER"},
                  {"hidden=64,layers=2,", "FIELD=NUMBER"},
                  {"hidden=64,layers=2x", "layers=2x"},
                  {"hidden=64,layers=-2", "layers=-2"},
                  {"hidden=64,layers=99999999999999999999", "FIELD=NUMBER"},
                  {"hidden=64,layers=2,experts=8", "experts=8"},
                  {"hidden=64,layers=2,arch=mamba", "mamba"},
                  {"hidden=64,layers=2,heads=3,kv-heads=2,head-dim=16", "num_key_value_heads"},
                  {"hidden=64,layers=999999999", "num_hidden_layers"}};
    (void)state;
    struct model_source *s;
    pdvm_error err;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const struct synthetic_options options = {.shape = shapes[i].shape, .values = MDCSR_INT8};
        pdvm_status status = source_open_synthetic(&options, &s, &err);
        assert_int_not_equal(status, PDVM_OK);
        assert_non_null(strstr(err.message, shapes[i].message));
        assert_null(s);
    }
    const struct synthetic_options bad[] = {
        {.shape = "tiny", .values = MDCSR_INT8, .sparsity = 1.01},
        {.shape = "tiny", .values = MDCSR_INT8, .sparsity = -0.1},
        {.shape = "tiny", .values = MDCSR_INT8, .sparsity = (double)NAN},
        {.shape = "tiny", .values = MDCSR_INT8, .group = 48},
        {.shape = "tiny", .values = MDCSR_N_VALUES}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_error(source_open_synthetic(&bad[i], &s, &err), PDVM_ERR_ARGUMENT, &err, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_pass_the_check_of_files_in_every_coding),
        cmocka_unit_test(rows_have_the_sparsity_to_a_few_per_cent_and_matrices_exactly),
        cmocka_unit_test(columns_and_values_are_spread_evenly),
        cmocka_unit_test(the_seed_decides_the_model),
        cmocka_unit_test(rows_read_are_rows_of_the_matrix),
        cmocka_unit_test(embedding_and_head_stay_dense_int8),
        cmocka_unit_test(activations_stay_of_normal_size),
        cmocka_unit_test(every_known_shape_opens_without_memory_for_its_weights),
        cmocka_unit_test(wrong_shapes_and_options_are_explained),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
