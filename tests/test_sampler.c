// Each step of the sampler against a plain reference in double that sorts everything, the draws
// against the distribution that they should have, and what must be refused.

#include "support/support.h"

#include "base/random.h"
#include "base/time.h"
#include "engine/sampler.h"

#include <math.h>
#include <stdlib.h>

#define MAX_VOCAB 400

static pdvm_sampler_options plain(void) {
    return (pdvm_sampler_options){
        .temperature = 1, .top_p = 1, .typical_p = 1, .repeat_penalty = 1};
}

static pdvm_sampler *make(const pdvm_sampler_options *options) {
    pdvm_sampler *s;
    pdvm_error err;
    assert_ok(pdvm_sampler_create(options, &s, &err), &err);
    return s;
}

static int32_t sample(pdvm_sampler *s, const float *logits, size_t n) {
    int32_t token = -1;
    pdvm_error err;
    assert_ok(pdvm_sampler_sample(s, logits, n, &token, &err), &err);
    assert_true(token >= 0 && (size_t)token < n);
    return token;
}

/* ---- the reference ------------------------------------------------------------------------- */

struct entry {
    double logit, p, score;
    int token;
};

static int by_logit(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token - y->token;
}

static int by_score(const void *a, const void *b) {
    const struct entry *x = a, *y = b;
    if (x->score != y->score) return x->score < y->score ? -1 : 1;
    return x->token - y->token;
}

static void softmax(struct entry *e, size_t n) {
    double largest = e[0].logit, sum = 0;
    for (size_t i = 0; i < n; i++) largest = fmax(largest, e[i].logit);
    for (size_t i = 0; i < n; i++) sum += e[i].p = exp(e[i].logit - largest);
    for (size_t i = 0; i < n; i++) e[i].p /= sum;
}

static size_t reference_typical(struct entry *e, size_t n, double p) {
    softmax(e, n);
    double entropy = 0, sum = 0;
    for (size_t i = 0; i < n; i++)
        if (e[i].p > 0) entropy -= e[i].p * log(e[i].p);
    for (size_t i = 0; i < n; i++) e[i].score = fabs(-log(e[i].p) - entropy);
    qsort(e, n, sizeof *e, by_score);
    size_t keep = 0;
    while (keep < n && sum <= p) sum += e[keep++].p;
    qsort(e, keep, sizeof *e, by_logit);
    return keep;
}

static size_t reference_top_p(struct entry *e, size_t n, double p) {
    softmax(e, n);
    double sum = 0;
    size_t keep = 0;
    do sum += e[keep++].p;
    while (keep < n && sum < p);
    return keep;
}

static size_t reference_min_p(struct entry *e, size_t n, double p) {
    softmax(e, n);
    size_t keep = 0;
    while (keep < n && e[keep].p >= p * e[0].p) keep++;
    return keep;
}

/* What is left of the logits after all steps, likeliest first, with its probabilities. */
static size_t reference(const pdvm_sampler_options *o, const float *logits, size_t n,
                        const int32_t *history, size_t n_history, struct entry *e) {
    double changed[MAX_VOCAB];
    for (size_t i = 0; i < n; i++) changed[i] = (double)logits[i];
    for (size_t i = 0; i < o->n_logit_bias; i++)
        changed[o->logit_bias[i].token] += (double)o->logit_bias[i].bias;
    size_t first = o->repeat_last_n < 0 || (size_t)o->repeat_last_n > n_history
                       ? 0
                       : n_history - (size_t)o->repeat_last_n;
    for (size_t token = 0; token < n; token++) {
        int count = 0;
        for (size_t i = first; i < n_history; i++) count += history[i] == (int32_t)token;
        if (count == 0) continue;
        double r = (double)o->repeat_penalty;
        changed[token] = changed[token] > 0 ? changed[token] / r : changed[token] * r;
        changed[token] -= count * (double)o->frequency_penalty + (double)o->presence_penalty;
    }
    size_t m = 0;
    for (size_t i = 0; i < n; i++)
        if (changed[i] > -INFINITY) e[m++] = (struct entry){.logit = changed[i], .token = (int)i};
    qsort(e, m, sizeof *e, by_logit);
    if (o->top_k > 0 && (size_t)o->top_k < m) m = (size_t)o->top_k;
    if (o->typical_p < 1) m = reference_typical(e, m, (double)o->typical_p);
    if (o->top_p < 1) m = reference_top_p(e, m, (double)o->top_p);
    if (o->min_p > 0) m = reference_min_p(e, m, (double)o->min_p);
    for (size_t i = 0; i < m && o->temperature > 0; i++) e[i].logit /= (double)o->temperature;
    if (o->temperature == 0) m = 1;
    softmax(e, m);
    return m;
}

static int32_t reference_draw(const struct entry *e, size_t n, double u) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        if ((sum += e[i].p) > u) return e[i].token;
    return e[0].token;
}

static void random_logits(float *logits, size_t n, double scale, uint64_t *random) {
    for (size_t i = 0; i < n; i++) {
        double u = pd_random_unit(random) + pd_random_unit(random) + pd_random_unit(random) - 1.5;
        logits[i] = (float)(scale * u);
    }
}

/* Samples a few times from random logits and compares every choice with the reference's. */
static void compare(pdvm_sampler_options o, uint64_t seed) {
    uint64_t random = seed;
    float logits[MAX_VOCAB];
    int32_t history[64];
    size_t n = 1 + (size_t)(pd_random(&random) % MAX_VOCAB), n_history = 0;
    o.seed = seed;
    pdvm_sampler *s = make(&o);
    uint64_t draws = seed;
    for (int i = 0; i < 20; i++) {
        random_logits(logits, n, 12, &random);
        if (i % 4 == 1) {
            for (size_t j = 0; j < n; j++) logits[j] = (float)(pd_random(&random) % 3);
        }
        if (i % 4 == 2) {
            for (size_t j = 1; j < n; j += 2) logits[j] = -INFINITY;
        }
        if (i % 3 == 0) {
            int32_t token = (int32_t)(pd_random(&random) % n);
            assert_int_equal(pdvm_sampler_accept(s, token, NULL), PDVM_OK);
            history[n_history++] = token;
        }
        struct entry e[MAX_VOCAB];
        size_t m = reference(&o, logits, n, history, n_history, e);
        int32_t expected =
            o.temperature > 0 ? reference_draw(e, m, pd_random_unit(&draws)) : e[0].token;
        int32_t token = sample(s, logits, n);
        assert_int_equal(token, expected);
        history[n_history++] = token;
    }
    pdvm_sampler_free(s);
}

static void choices_equal_the_reference_step_by_step(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 30; seed++) {
        pdvm_sampler_options o = plain();
        compare(o, seed);
        o.temperature = 0.3f;
        compare(o, seed);
        o.temperature = 0;
        compare(o, seed);
        for (int32_t k = 1; k <= 100; k = 3 * k + 1) {
            o = plain();
            o.top_k = k;
            compare(o, seed);
        }
        for (int i = 0; i <= 9; i++) {
            float p = (float)i / 10;
            o = plain();
            o.top_p = p;
            compare(o, seed);
            o = plain();
            o.min_p = p;
            compare(o, seed);
            o = plain();
            o.typical_p = p;
            compare(o, seed);
            o.temperature = 0;
            compare(o, seed);
        }
    }
}

static void choices_equal_the_reference_with_all_steps_together(void **state) {
    (void)state;
    uint64_t random = 99;
    for (uint64_t seed = 1; seed <= 300; seed++) {
        pdvm_sampler_options o = plain();
        pdvm_logit_bias bias[3];
        o.temperature = (float)(0.1 + 2 * pd_random_unit(&random));
        o.top_k = (int32_t)(pd_random(&random) % 200);
        o.top_p = (float)pd_random_unit(&random);
        o.min_p = (float)pd_random_unit(&random) / 4;
        o.typical_p = (float)(0.2 + pd_random_unit(&random));
        if (o.typical_p > 1) o.typical_p = 1;
        o.repeat_penalty = (float)(0.5 + pd_random_unit(&random));
        o.frequency_penalty = (float)pd_random_unit(&random) - 0.3f;
        o.presence_penalty = (float)pd_random_unit(&random) - 0.3f;
        o.repeat_last_n = (int32_t)(pd_random(&random) % 12) - 1;
        for (int i = 0; i < 3; i++)
            bias[i] = (pdvm_logit_bias){0, i == 1 ? -1.5f : (float)pd_random_unit(&random)};
        o.logit_bias = bias;
        o.n_logit_bias = (size_t)(pd_random(&random) % 4);
        compare(o, seed);
    }
}

static void draws_follow_the_distribution(void **state) {
    (void)state;
    enum { N = 12, DRAWS = 40000 };
    for (uint64_t seed = 1; seed <= 4; seed++) {
        float logits[N];
        uint64_t random = seed;
        random_logits(logits, N, 2, &random);
        pdvm_sampler_options o = plain();
        o.temperature = 0.9f;
        o.seed = seed;
        struct entry e[MAX_VOCAB];
        size_t n = reference(&o, logits, N, NULL, 0, e);
        size_t counts[N] = {0};
        pdvm_sampler *s = make(&o);
        for (int i = 0; i < DRAWS; i++) counts[sample(s, logits, N)]++;
        double chi2 = 0;
        for (size_t i = 0; i < n; i++) {
            double expected = DRAWS * e[i].p, d = (double)counts[e[i].token] - expected;
            assert_true(expected > 5);
            chi2 += d * d / expected;
        }
        // 11 degrees of freedom: above 35 once in 4000.
        if (chi2 > 35) fail_msg("chi-square %g with seed %d", chi2, (int)seed);
        pdvm_sampler_free(s);
    }
}

static void a_seed_repeats_its_choices_and_reset_starts_again(void **state) {
    (void)state;
    float logits[50];
    uint64_t random = 5;
    random_logits(logits, 50, 3, &random);
    pdvm_sampler_options o = plain();
    o.seed = 42;
    o.repeat_last_n = -1;
    o.frequency_penalty = 0.2f;
    pdvm_sampler *a = make(&o), *b = make(&o);
    o.seed = 43;
    pdvm_sampler *other = make(&o);
    int32_t first[40];
    int different = 0;
    for (int i = 0; i < 40; i++) {
        first[i] = sample(a, logits, 50);
        assert_int_equal(first[i], sample(b, logits, 50));
        different += first[i] != sample(other, logits, 50);
    }
    assert_true(different > 10);
    pdvm_sampler_reset(a);
    for (int i = 0; i < 40; i++) assert_int_equal(sample(a, logits, 50), first[i]);
    pdvm_sampler_free(a);
    pdvm_sampler_free(b);
    pdvm_sampler_free(other);
}

static void equal_logits_break_to_the_lower_id(void **state) {
    (void)state;
    float logits[9] = {1, 5, 2, 5, 5, 0, 5, 1, 5};
    pdvm_sampler_options o = plain();
    o.temperature = 0;
    pdvm_sampler *s = make(&o);
    assert_int_equal(sample(s, logits, 9), 1);
    pdvm_sampler_free(s);
    o.temperature = 1;
    o.top_k = 2;
    s = make(&o);
    for (int i = 0; i < 50; i++) {
        int32_t token = sample(s, logits, 9);
        assert_true(token == 1 || token == 3);
    }
    pdvm_sampler_free(s);
}

static void penalties_look_back_exactly_so_far(void **state) {
    (void)state;
    // Token 0 is best until it is penalised; window 3.
    float logits[3] = {2, 1.5f, -20};
    pdvm_sampler_options o = plain();
    o.temperature = 0;
    o.presence_penalty = 1;
    o.repeat_last_n = 3;
    pdvm_sampler *s = make(&o);
    assert_int_equal(pdvm_sampler_accept(s, 0, NULL), PDVM_OK);
    assert_int_equal(sample(s, logits, 3), 1);
    assert_int_equal(pdvm_sampler_accept(s, 2, NULL), PDVM_OK);
    // 0 and 1 are both in the window: 2 - 1 against 1.5 - 1.
    assert_int_equal(sample(s, logits, 3), 0);
    for (int i = 0; i < 1000; i++) assert_int_equal(pdvm_sampler_accept(s, 2, NULL), PDVM_OK);
    assert_int_equal(sample(s, logits, 3), 0);
    assert_int_equal(sample(s, logits, 3), 1);
    pdvm_sampler_free(s);
    // A negative logit is multiplied: penalties always make a token less likely.
    float negative[2] = {-1, -1.5f};
    o.presence_penalty = 0;
    o.repeat_penalty = 2;
    s = make(&o);
    assert_int_equal(sample(s, negative, 2), 0);
    assert_int_equal(sample(s, negative, 2), 1);
    // Tokens outside of this vocabulary are none of its business.
    assert_int_equal(pdvm_sampler_accept(s, 2000000000, NULL), PDVM_OK);
    assert_int_equal(sample(s, negative, 2), 0);
    pdvm_sampler_free(s);
    o.repeat_last_n = 0;
    s = make(&o);
    for (int i = 0; i < 5; i++) assert_int_equal(sample(s, negative, 2), 0);
    pdvm_sampler_free(s);
}

static void biases_move_and_ban_tokens(void **state) {
    (void)state;
    float logits[3] = {2, 1, 0};
    pdvm_logit_bias bias[3] = {{0, -INFINITY}, {2, 0.6f}, {2, 0.6f}};
    pdvm_sampler_options o = plain();
    o.temperature = 0;
    o.logit_bias = bias;
    o.n_logit_bias = 3;
    pdvm_sampler *s = make(&o);
    bias[1].bias = 0;
    assert_int_equal(sample(s, logits, 3), 2);
    pdvm_sampler_free(s);
    o.temperature = 1;
    o.n_logit_bias = 1;
    s = make(&o);
    for (int i = 0; i < 200; i++) assert_int_not_equal(sample(s, logits, 3), 0);
    pdvm_sampler_free(s);
    for (int i = 0; i < 3; i++) bias[i] = (pdvm_logit_bias){i, -INFINITY};
    o.n_logit_bias = 3;
    s = make(&o);
    int32_t token;
    pdvm_error err;
    assert_error(pdvm_sampler_sample(s, logits, 3, &token, &err), PDVM_ERR_ARGUMENT, &err,
                 "finite logit");
    assert_error(pdvm_sampler_sample(s, logits, 2, &token, &err), PDVM_ERR_ARGUMENT, &err,
                 "token 2");
    pdvm_sampler_free(s);
}

static void senseless_logits_are_refused(void **state) {
    (void)state;
    pdvm_sampler *s = make(NULL);
    float one[1] = {-3}, banned[2] = {-INFINITY, -INFINITY}, nan_one[3] = {0, NAN, 0};
    float infinite[2] = {0, INFINITY};
    int32_t token;
    pdvm_error err;
    assert_int_equal(sample(s, one, 1), 0);
    assert_error(pdvm_sampler_sample(s, banned, 2, &token, &err), PDVM_ERR_ARGUMENT, &err,
                 "finite logit");
    assert_error(pdvm_sampler_sample(s, nan_one, 3, &token, &err), PDVM_ERR_ARGUMENT, &err,
                 "token 1");
    assert_error(pdvm_sampler_sample(s, infinite, 2, &token, &err), PDVM_ERR_ARGUMENT, &err,
                 "token 1");
    assert_error(pdvm_sampler_sample(s, one, 0, &token, &err), PDVM_ERR_ARGUMENT, &err, "0 logits");
    assert_error(pdvm_sampler_sample(s, NULL, 1, &token, &err), PDVM_ERR_ARGUMENT, &err, "logits");
    assert_error(pdvm_sampler_accept(s, -1, &err), PDVM_ERR_ARGUMENT, &err, "-1");
    // Extreme but finite ones are fine.
    float extreme[4] = {3e38f, -3e38f, 3e38f, 0};
    for (int i = 0; i < 20; i++) {
        token = sample(s, extreme, 4);
        assert_true(token == 0 || token == 2);
    }
    pdvm_sampler_free(s);
    pdvm_sampler_free(NULL);
}

static void options_out_of_range_are_named(void **state) {
    (void)state;
    static const pdvm_logit_bias BAD[] = {{-1, 0}, {0, NAN}, {0, INFINITY}};
    const float nan_value = NAN;
    pdvm_sampler_options o[16];
    const char *names[16];
    size_t n = 0;
#define BAD_OPTION(field, value)                                                                   \
    do {                                                                                           \
        o[n] = pdvm_sampler_options_default();                                                     \
        names[n] = #field;                                                                         \
        o[n++].field = value;                                                                      \
    } while (0)
    BAD_OPTION(temperature, -0.1f);
    BAD_OPTION(temperature, nan_value);
    BAD_OPTION(temperature, INFINITY);
    BAD_OPTION(top_k, -1);
    BAD_OPTION(top_p, 1.1f);
    BAD_OPTION(min_p, -0.1f);
    BAD_OPTION(typical_p, 2);
    BAD_OPTION(repeat_penalty, 0);
    BAD_OPTION(repeat_penalty, nan_value);
    BAD_OPTION(repeat_last_n, -2);
    BAD_OPTION(frequency_penalty, nan_value);
    BAD_OPTION(presence_penalty, INFINITY);
    BAD_OPTION(n_logit_bias, 1);
    for (size_t i = 0; i < 3; i++) {
        BAD_OPTION(logit_bias, &BAD[i]);
        o[n - 1].n_logit_bias = 1;
    }
    for (size_t i = 0; i < n; i++) {
        pdvm_sampler *s;
        pdvm_error err;
        assert_error(pdvm_sampler_create(&o[i], &s, &err), PDVM_ERR_ARGUMENT, &err, names[i]);
        assert_null(s);
    }
}

static void a_large_vocabulary_costs_little(void **state) {
    (void)state;
    enum { N = 131072 };
    float *logits = malloc(N * sizeof *logits);
    assert_non_null(logits);
    uint64_t random = 3;
    random_logits(logits, N, 12, &random);
    // Rising logits are the worst order for a partial selection.
    for (int i = 0; i < N / 2; i++) logits[i] = (float)i * 1e-6f;
    for (int k = 0; k <= 40; k += 40) {
        pdvm_sampler_options o = pdvm_sampler_options_default();
        o.top_k = k;
        pdvm_sampler *s = make(&o);
        double start = pd_seconds();
        for (int i = 0; i < 10; i++) sample(s, logits, N);
        double seconds = (pd_seconds() - start) / 10;
        // A few milliseconds; the limit is for slow machines under sanitizers.
        if (seconds > 1) fail_msg("%.3f s for a token with top-k %d", seconds, k);
        pdvm_sampler_free(s);
    }
    free(logits);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_equal_the_reference_step_by_step),
        cmocka_unit_test(choices_equal_the_reference_with_all_steps_together),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(a_seed_repeats_its_choices_and_reset_starts_again),
        cmocka_unit_test(equal_logits_break_to_the_lower_id),
        cmocka_unit_test(penalties_look_back_exactly_so_far),
        cmocka_unit_test(biases_move_and_ban_tokens),
        cmocka_unit_test(senseless_logits_are_refused),
        cmocka_unit_test(options_out_of_range_are_named),
        cmocka_unit_test(a_large_vocabulary_costs_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
