/* Divergence between two models' predictions, and the files that hold one side of it. */
#include "base/random.h"
#include "eval/divergence.h"
#include "eval/logits_file.h"
#include "eval/perplexity.h"
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST 300

static double normal(uint64_t *state) {
    double u = pd_random_unit(state) + 1e-18, v = pd_random_unit(state);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void random_logits(uint64_t *seed, size_t n, double spread, float *out) {
    for (size_t i = 0; i < n; i++) out[i] = (float)(spread * normal(seed));
}

static void softmax(const float *logits, size_t n, double *p) {
    double max = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) max = fmax(max, (double)logits[i]);
    for (size_t i = 0; i < n; i++) sum += p[i] = exp((double)logits[i] - max);
    for (size_t i = 0; i < n; i++) p[i] /= sum;
}

static double plain_kl(const double *p, const double *q, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if (p[i] > 0) sum += p[i] * log(p[i] / q[i]);
    return sum;
}

/* Adds a token to `d`, both sides given as logits. */
static void add(struct divergence *d, const float *reference, const float *logits, size_t n,
                int32_t token) {
    pdvm_error err;
    double x[MOST];
    for (size_t i = 0; i < n; i++) x[i] = (double)reference[i];
    assert_ok(divergence_add(d, x, logits, n, token, perplexity_nll(logits, n, token), &err), &err);
}

static void assert_near(double value, double expected, double tolerance) {
    if (!(fabs(value - expected) <= tolerance)) support_fail("%.12g, not %.12g", value, expected);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void figures_are_those_of_a_plain_computation(void **state) {
    enum { N = 211 };
    (void)state;
    uint64_t seed = 5;
    struct divergence d = {0};
    double kl[N], mean = 0, squares = 0, dp = 0, dp2 = 0, nll_p = 0, nll_q = 0, same = 0;
    for (int t = 0; t < N; t++) {
        size_t n = 1 + (size_t)(pd_random(&seed) % MOST);
        int32_t token = (int32_t)(pd_random(&seed) % n);
        float a[MOST], b[MOST];
        double p[MOST], q[MOST];
        random_logits(&seed, n, 3, a);
        for (size_t i = 0; i < n; i++) b[i] = a[i] + 40 + (float)(0.3 * normal(&seed));
        softmax(a, n, p);
        softmax(b, n, q);
        kl[t] = plain_kl(p, q, n);
        size_t top_p = 0, top_q = 0;
        for (size_t i = 0; i < n; i++) {
            if (p[i] > p[top_p]) top_p = i;
            if (q[i] > q[top_q]) top_q = i;
        }
        same += top_p == top_q;
        dp += q[token] - p[token];
        dp2 += pow(q[token] - p[token], 2);
        nll_p -= log(p[token]);
        nll_q -= log(q[token]);
        add(&d, a, b, n, token);
    }
    struct divergence_result r;
    pdvm_error err;
    assert_ok(divergence_finish(&d, &r, &err), &err);
    for (int t = 0; t < N; t++) mean += kl[t] / N;
    for (int t = 0; t < N; t++) squares += pow(kl[t] - mean, 2);
    assert_int_equal(r.n, N);
    assert_near(r.kl.value, mean, 1e-12);
    assert_near(r.kl.error, sqrt(squares / (N - 1) / N), 1e-12);
    assert_near(r.same_top.value, same / N, 1e-12);
    assert_near(r.dp.value, dp / N, 1e-12);
    assert_near(r.dp_rms.value, sqrt(dp2 / N), 1e-12);
    assert_near(r.reference_nll.value, nll_p / N, 1e-12);
    assert_near(r.nll_change.value, (nll_q - nll_p) / N, 1e-12);
    assert_near(r.perplexity_ratio.value, exp(nll_q / N) / exp(nll_p / N), 1e-12);
    qsort(kl, N, sizeof *kl, ascending);
    assert_near(r.max, kl[N - 1], 1e-12);
    assert_near(r.quantiles[3], kl[N / 2], 1e-12); /* the median, of an odd number */
    assert_near(r.quantiles[0], kl[2] + 0.1 * (kl[3] - kl[2]), 1e-12);
    divergence_free(&d);
}

static void equal_predictions_do_not_diverge(void **state) {
    (void)state;
    uint64_t seed = 9;
    float a[MOST], shifted[MOST];
    struct divergence d = {0};
    for (int t = 0; t < 50; t++) {
        random_logits(&seed, MOST, 4, a);
        for (int i = 0; i < MOST; i++) shifted[i] = a[i] + 2; /* the same probabilities */
        add(&d, a, a, MOST, t);
        add(&d, a, shifted, MOST, t);
    }
    struct divergence_result r;
    pdvm_error err;
    assert_ok(divergence_finish(&d, &r, &err), &err);
    assert_true(r.kl.value >= 0 && r.kl.value < 1e-12);
    assert_true(r.max < 1e-11);
    assert_true(r.same_top.value == 1);
    assert_near(r.perplexity_ratio.value, 1, 1e-6);
    divergence_free(&d);
}

static void small_divergences_are_not_lost_to_rounding(void **state) {
    (void)state;
    uint64_t seed = 11;
    float a[MOST], b[MOST];
    struct divergence d = {0};
    random_logits(&seed, MOST, 3, a);
    memcpy(b, a, sizeof b);
    b[17] += 1e-3f;
    double p[MOST], change = (double)b[17] - (double)a[17];
    softmax(a, MOST, p);
    /* log(1 + p (exp(c) - 1)) - p c, by its series. */
    double expected = p[17] * (1 - p[17]) * change * change / 2;
    add(&d, a, b, MOST, 3);
    assert_near(d.kl[0], expected, 1e-3 * expected + 1e-15);
    divergence_free(&d);
}

static void predictions_that_are_not_finite_are_refused(void **state) {
    (void)state;
    pdvm_error err;
    const float logits[2] = {0, 1};
    const double x[2] = {0, NAN};
    struct divergence d = {0};
    assert_error(divergence_add(&d, x, logits, 2, 0, 1, &err), PDVM_ERR_RANGE, &err, "finite");
    assert_int_equal(d.n, 0);
    struct divergence_result r;
    assert_ok(divergence_finish(&d, &r, &err), &err);
    assert_int_equal(r.n, 0);
}

/* ---- files ----------------------------------------------------------------------------- */

#define N_TOKENS 33
#define N_VOCAB 257

struct saved {
    char *dir, *path;
    float logits[N_TOKENS][N_VOCAB];
    struct logits_key key;
};

static struct logits_key key_of(const char *text, int32_t first, uint32_t n_ctx) {
    int32_t tokens[N_TOKENS] = {first};
    const struct perplexity_options o = {.n_ctx = n_ctx, .stride = 8};
    return logits_key_of(text, strlen(text), tokens, N_TOKENS, N_VOCAB, &o);
}

static int save(void **state) {
    static struct saved s;
    pdvm_error err;
    struct logits_writer *w;
    uint64_t seed = 3;
    s.dir = support_tmpdir();
    s.path = support_path(s.dir, "logits");
    s.key = key_of("a text", 5, 16);
    assert_ok(logits_writer_open(s.path, &s.key, "mod\"el", &w, &err), &err);
    for (int t = 0; t < N_TOKENS - 1; t++) {
        random_logits(&seed, N_VOCAB, t == 7 ? 0 : 1 + t, s.logits[t]);
        assert_ok(logits_writer_add(w, s.logits[t], &err), &err);
    }
    assert_error(logits_writer_add(w, s.logits[0], &err), PDVM_ERR_ARGUMENT, &err, "more than 32");
    assert_ok(logits_writer_commit(w, &err), &err);
    *state = &s;
    return 0;
}

static int discard(void **state) {
    struct saved *s = *state;
    free(s->path);
    support_tmpdir_remove(s->dir);
    return 0;
}

static void saved_predictions_come_back_within_half_a_step(void **state) {
    const struct saved *s = *state;
    pdvm_error err;
    struct logits_file *f;
    double x[N_VOCAB];
    assert_ok(logits_file_open(s->path, &f, &err), &err);
    assert_int_equal(logits_file_count(f), N_TOKENS - 1);
    assert_int_equal(logits_file_vocab(f), N_VOCAB);
    assert_string_equal(logits_file_model(f), "mod\"el");
    struct divergence d = {0};
    for (uint64_t t = 0; t < N_TOKENS - 1; t++) {
        const float *logits = s->logits[t];
        float top = -INFINITY, low = INFINITY;
        for (int i = 0; i < N_VOCAB; i++) {
            if (logits[i] > top) top = logits[i];
            if (logits[i] < low) low = logits[i];
        }
        logits_file_row(f, t, x);
        double step = ((double)top - (double)low) / 65535;
        for (int i = 0; i < N_VOCAB; i++)
            assert_near(x[i], (double)logits[i] - (double)top, 0.51 * step + 1e-12);
        assert_ok(
            divergence_add(&d, x, logits, N_VOCAB, 1, perplexity_nll(logits, N_VOCAB, 1), &err),
            &err);
        /* To second order, and errors spread evenly within a step. */
        assert_true(d.kl[t] <= step * step / 4 + 1e-15);
    }
    divergence_free(&d);
    logits_file_close(f);
}

static void a_file_fits_only_what_it_was_made_with(void **state) {
    const struct saved *s = *state;
    pdvm_error err;
    struct logits_file *f;
    assert_ok(logits_file_open(s->path, &f, &err), &err);
    assert_ok(logits_file_check(f, &s->key, &err), &err);
    struct logits_key key = key_of("b text", 5, 16);
    assert_error(logits_file_check(f, &key, &err), PDVM_ERR_ARGUMENT, &err, "the text is");
    key = key_of("a text", 6, 16);
    assert_error(logits_file_check(f, &key, &err), PDVM_ERR_ARGUMENT, &err, "the tokenizer is");
    key = key_of("a text", 5, 15);
    assert_error(logits_file_check(f, &key, &err), PDVM_ERR_ARGUMENT, &err,
                 "the window is 15 now, and was 16 then");
    key = s->key;
    key.n_vocab++;
    assert_error(logits_file_check(f, &key, &err), PDVM_ERR_ARGUMENT, &err, "258");
    key = s->key;
    key.options.protocol = PERPLEXITY_PAPERS;
    assert_error(logits_file_check(f, &key, &err), PDVM_ERR_ARGUMENT, &err,
                 "the protocol is papers");
    logits_file_close(f);
}

static void an_unfinished_file_never_appears(void **state) {
    const struct saved *s = *state;
    pdvm_error err;
    struct logits_writer *w;
    char *path = support_path(s->dir, "unfinished");
    const float bad[N_VOCAB] = {NAN};
    assert_ok(logits_writer_open(path, &s->key, "", &w, &err), &err);
    assert_error(logits_writer_add(w, bad, &err), PDVM_ERR_RANGE, &err, "candidate 0");
    assert_error(logits_writer_commit(w, &err), PDVM_ERR_ARGUMENT, &err, "0 of 32");
    assert_false(support_exists(path));
    assert_int_equal(support_count_entries(s->dir), 1);
    free(path);
}

/* The file with `from` in its header replaced by `to` of the same length must be refused. */
static void refuse_changed(const struct saved *s, const char *from, const char *to,
                           const char *text) {
    size_t size;
    char *data = support_read_file(s->path, &size);
    struct logits_file *f;
    pdvm_error err;
    char *place = strstr(data + 8, from);
    assert_non_null(place);
    memcpy(place, to, strlen(to));
    assert_error(logits_file_open_memory("changed", data, size, &f, &err), PDVM_ERR_FORMAT, &err,
                 text);
    assert_null(f);
    free(data);
}

static void damaged_files_are_refused(void **state) {
    const struct saved *s = *state;
    refuse_changed(s, "\"codes\"", "\"coder\"", "must have the tensors");
    refuse_changed(s, "\"U16\"", "\"I16\"", "codes must be U16");
    refuse_changed(s, "[32,257]", "[257,32]", "steps must be F32 [257]");
    refuse_changed(s, "\"pdvm.logits\"", "\"pdvm.lagits\"", "not a file of saved logits");
    size_t size;
    char *data = support_read_file(s->path, &size);
    struct logits_file *f;
    pdvm_error err;
    const float bad[] = {NAN, INFINITY, -1, 1e38f};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memcpy(data + size - sizeof *bad, &bad[i], sizeof *bad);
        assert_error(logits_file_open_memory("changed", data, size, &f, &err), PDVM_ERR_FORMAT,
                     &err, "step 31");
    }
    for (size_t cut = 1; cut < size; cut += size / 97)
        assert_error(logits_file_open_memory("cut", data, size - cut, &f, &err), PDVM_ERR_FORMAT,
                     &err, "cut");
    free(data);
}

int main(void) {
    const struct CMUnitTest statistics[] = {
        cmocka_unit_test(figures_are_those_of_a_plain_computation),
        cmocka_unit_test(equal_predictions_do_not_diverge),
        cmocka_unit_test(small_divergences_are_not_lost_to_rounding),
        cmocka_unit_test(predictions_that_are_not_finite_are_refused),
    };
    const struct CMUnitTest files[] = {
        cmocka_unit_test(saved_predictions_come_back_within_half_a_step),
        cmocka_unit_test(a_file_fits_only_what_it_was_made_with),
        cmocka_unit_test(an_unfinished_file_never_appears),
        cmocka_unit_test(damaged_files_are_refused),
    };
    int failed = cmocka_run_group_tests(statistics, NULL, NULL);
    return failed + cmocka_run_group_tests(files, save, discard);
}
