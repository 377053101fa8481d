#include "engine/sampler.h"

#include "base/alloc.h"
#include "base/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pdvm_sampler {
    pdvm_sampler_options options;
    pdvm_logit_bias *bias;
    uint64_t random;
    int32_t *history; /* the latest tokens last; never more than twice the window */
    size_t n_history;
    size_t history_capacity;
    struct sampler_candidate *items;
    size_t items_capacity;
};

pdvm_sampler_options pdvm_sampler_options_default(void) {
    return (pdvm_sampler_options){.temperature = 0.8f,
                                  .top_k = 40,
                                  .top_p = 0.95f,
                                  .min_p = 0.05f,
                                  .typical_p = 1,
                                  .repeat_penalty = 1,
                                  .repeat_last_n = 64};
}

static pdvm_status check_range(const char *name, float value, double least, double most,
                               pdvm_error *err) {
    if (isfinite(value) && value >= least && value <= most) return PDVM_OK;
    if (most < INFINITY)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: %s is %g; expected %g to %g", name,
                       (double)value, least, most);
    if (least > -INFINITY)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: %s is %g; expected a number from %g up",
                       name, (double)value, least);
    return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: %s is %g; expected a number", name,
                   (double)value);
}

static pdvm_status check_options(const pdvm_sampler_options *o, pdvm_error *err) {
    PD_TRY(check_range("temperature", o->temperature, 0, INFINITY, err));
    PD_TRY(check_range("top_p", o->top_p, 0, 1, err));
    PD_TRY(check_range("min_p", o->min_p, 0, 1, err));
    PD_TRY(check_range("typical_p", o->typical_p, 0, 1, err));
    PD_TRY(check_range("frequency_penalty", o->frequency_penalty, -INFINITY, INFINITY, err));
    PD_TRY(check_range("presence_penalty", o->presence_penalty, -INFINITY, INFINITY, err));
    if (!isfinite(o->repeat_penalty) || o->repeat_penalty <= 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "sampler: repeat_penalty is %g; expected a number above 0 (1 is off)",
                       (double)o->repeat_penalty);
    if (o->top_k < 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: top_k is %d; expected 0 (all) or more",
                       (int)o->top_k);
    if (o->repeat_last_n < -1)
        return pd_fail(err, PDVM_ERR_ARGUMENT,
                       "sampler: repeat_last_n is %d; expected -1 (all), 0 (none) or more",
                       (int)o->repeat_last_n);
    if (o->n_logit_bias > 0 && !o->logit_bias)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: logit_bias is NULL, n_logit_bias is %zu",
                       o->n_logit_bias);
    for (size_t i = 0; i < o->n_logit_bias; i++) {
        const pdvm_logit_bias *b = &o->logit_bias[i];
        if (b->token < 0)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: logit_bias[%zu]: token %d", i,
                           (int)b->token);
        if (isnan(b->bias) || (isinf(b->bias) && b->bias > 0))
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "sampler: logit_bias[%zu]: a bias of %g; expected a number or -inf", i,
                           (double)b->bias);
    }
    return PDVM_OK;
}

pdvm_status pdvm_sampler_create(const pdvm_sampler_options *options, pdvm_sampler **out,
                                pdvm_error *err) {
    if (!out) return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: no place for the handle");
    *out = NULL;
    pdvm_sampler_options chosen = options ? *options : pdvm_sampler_options_default();
    PD_TRY(check_options(&chosen, err));
    pdvm_sampler *s;
    PD_TRY(pd_calloc(&s, 1, sizeof *s, "a sampler", err));
    s->options = chosen;
    pdvm_status status =
        pd_calloc(&s->bias, chosen.n_logit_bias, sizeof *s->bias, "logit biases", err);
    if (status != PDVM_OK) {
        pdvm_sampler_free(s);
        return status;
    }
    if (chosen.n_logit_bias > 0)
        memcpy(s->bias, chosen.logit_bias, chosen.n_logit_bias * sizeof *s->bias);
    s->options.logit_bias = s->bias;
    pdvm_sampler_reset(s);
    *out = s;
    return PDVM_OK;
}

void pdvm_sampler_free(pdvm_sampler *sampler) {
    if (!sampler) return;
    free(sampler->bias);
    free(sampler->history);
    free(sampler->items);
    free(sampler);
}

void pdvm_sampler_reset(pdvm_sampler *sampler) {
    if (!sampler) return;
    sampler->random = sampler->options.seed;
    sampler->n_history = 0;
}

static bool has_penalties(const pdvm_sampler_options *o) {
    return o->repeat_last_n != 0 &&
           (o->repeat_penalty != 1 || o->frequency_penalty != 0 || o->presence_penalty != 0);
}

pdvm_status pdvm_sampler_accept(pdvm_sampler *sampler, int32_t token, pdvm_error *err) {
    if (!sampler) return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: NULL");
    if (token < 0) return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: token %d", (int)token);
    if (!has_penalties(&sampler->options)) return PDVM_OK;
    if (sampler->options.repeat_last_n > 0) {
        size_t window = (size_t)sampler->options.repeat_last_n;
        // Dropping in portions of a window makes the copying cheap on average.
        if (sampler->n_history >= 2 * window) {
            memmove(sampler->history, sampler->history + (sampler->n_history - window),
                    window * sizeof *sampler->history);
            sampler->n_history = window;
        }
    }
    PD_TRY(pd_grow(&sampler->history, &sampler->history_capacity, sampler->n_history + 1,
                   sizeof *sampler->history, "the sampler's history", err));
    sampler->history[sampler->n_history++] = token;
    return PDVM_OK;
}

static pdvm_status apply_bias(pdvm_sampler *s, size_t n_vocab, pdvm_error *err) {
    for (size_t i = 0; i < s->options.n_logit_bias; i++) {
        const pdvm_logit_bias *b = &s->bias[i];
        if ((size_t)b->token >= n_vocab)
            return pd_fail(err, PDVM_ERR_ARGUMENT,
                           "sampler: logit_bias[%zu]: token %d, but there are only %zu logits", i,
                           (int)b->token, n_vocab);
        s->items[b->token].logit += (double)b->bias;
    }
    return PDVM_OK;
}

static void apply_penalties(pdvm_sampler *s, size_t n_vocab) {
    const pdvm_sampler_options *o = &s->options;
    if (!has_penalties(o) || !s->history) return;
    size_t window = s->n_history;
    if (o->repeat_last_n > 0 && window > (size_t)o->repeat_last_n)
        window = (size_t)o->repeat_last_n;
    const int32_t *latest = s->history + (s->n_history - window);
    for (size_t i = 0; i < window; i++)
        if ((size_t)latest[i] < n_vocab) s->items[latest[i]].count++;
    for (size_t i = 0; i < window; i++) {
        if ((size_t)latest[i] >= n_vocab) continue;
        struct sampler_candidate *c = &s->items[latest[i]];
        if (c->count == 0) continue;
        if (c->logit <= 0) {
            c->logit *= (double)o->repeat_penalty;
        } else {
            c->logit /= (double)o->repeat_penalty;
        }
        c->logit -= (double)c->count * (double)o->frequency_penalty + (double)o->presence_penalty;
        c->count = 0;
    }
}

static pdvm_status make_candidates(pdvm_sampler *s, const float *logits, size_t n_vocab,
                                   struct sampler_candidates *c, pdvm_error *err) {
    PD_TRY(pd_grow(&s->items, &s->items_capacity, n_vocab, sizeof *s->items, "the sampler", err));
    for (size_t i = 0; i < n_vocab; i++) {
        if (isnan(logits[i]) || logits[i] == INFINITY)
            return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: the logit of token %zu is %g", i,
                           (double)logits[i]);
        s->items[i] = (struct sampler_candidate){.logit = (double)logits[i], .token = (int32_t)i};
    }
    PD_TRY(apply_bias(s, n_vocab, err));
    apply_penalties(s, n_vocab);
    *c = (struct sampler_candidates){.items = s->items};
    for (size_t i = 0; i < n_vocab; i++) {
        if (!isfinite(s->items[i].logit)) continue;
        s->items[i].key = s->items[i].logit;
        s->items[c->n++] = s->items[i];
    }
    if (c->n == 0)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: none of the %zu tokens has a finite logit",
                       n_vocab);
    return PDVM_OK;
}

pdvm_status pdvm_sampler_sample(pdvm_sampler *sampler, const float *logits, size_t n_vocab,
                                int32_t *token, pdvm_error *err) {
    if (!sampler || !logits || !token)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: NULL for %s",
                       !sampler  ? "the sampler"
                       : !logits ? "the logits"
                                 : "the token");
    if (n_vocab == 0 || n_vocab > INT32_MAX)
        return pd_fail(err, PDVM_ERR_ARGUMENT, "sampler: %zu logits", n_vocab);
    const pdvm_sampler_options *o = &sampler->options;
    struct sampler_candidates c;
    PD_TRY(make_candidates(sampler, logits, n_vocab, &c, err));
    if (o->temperature == 0 && o->typical_p >= 1) {
        // The likeliest passes every other step.
        sampler_top_k(&c, 1);
        *token = c.items[0].token;
        return pdvm_sampler_accept(sampler, *token, err);
    }
    if (o->top_k > 0) sampler_top_k(&c, (size_t)o->top_k);
    if (o->typical_p < 1) sampler_typical(&c, (double)o->typical_p);
    if (o->top_p < 1) sampler_top_p(&c, (double)o->top_p);
    if (o->min_p > 0) sampler_min_p(&c, (double)o->min_p);
    if (o->temperature > 0) {
        *token = sampler_draw(&c, (double)o->temperature, pd_random_unit(&sampler->random));
    } else {
        sampler_top_k(&c, 1);
        *token = c.items[0].token;
    }
    return pdvm_sampler_accept(sampler, *token, err);
}

bool sampler_for_device(const pdvm_sampler *sampler, uint32_t max_top_k,
                        struct backend_sampling *out) {
    const pdvm_sampler_options *o = &sampler->options;
    if (has_penalties(o) || o->n_logit_bias > 0 || o->typical_p < 1) return false;
    *out = (struct backend_sampling){
        .temperature = o->temperature, .top_k = 1, .top_p = 1, .random = sampler->random};
    if (o->temperature == 0) return true;
    if (o->top_k < 1 || (uint32_t)o->top_k > max_top_k) return false;
    out->top_k = (uint32_t)o->top_k;
    out->top_p = o->top_p;
    out->min_p = o->min_p;
    return true;
}

pdvm_status sampler_chose(pdvm_sampler *sampler, int32_t token, pdvm_error *err) {
    if (sampler->options.temperature > 0) pd_random(&sampler->random);
    return pdvm_sampler_accept(sampler, token, err);
}
