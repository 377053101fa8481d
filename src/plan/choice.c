/* The choice that keeps the limit, the front of all good choices, and the rules that make it. */
#include "base/alloc.h"
#include "plan/allocation.h"
#include "plan/planning.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Times that a choice for a largest loss is made again when the measured loss is above it. */
#define MOST_ROUNDS 5

/* What convert_model reserves in the header for a rule of n characters; and for any rule. */
#define RULE_BYTES_OF(n) (12 * (n) + 16)
#define RULE_BYTES RULE_BYTES_OF(90)

static pdvm_status new_point(const struct plan_result *r, struct plan_point *out, pdvm_error *err) {
    *out = (struct plan_point){.measured = NAN};
    return pd_calloc(&out->choice, r->n_groups, sizeof *out->choice, "a choice", err);
}

/* The allocation's problem: what costs, and what is made least. */
enum quantity { BYTES, SECONDS, LOSS };

static const double *quantity_of(const struct plan_group *g, enum quantity q) {
    return q == BYTES ? g->bytes : q == SECONDS ? g->seconds : g->loss;
}

static pdvm_status allocate(const struct plan_result *r, enum quantity cost, enum quantity loss,
                            double limit, struct allocation **out, pdvm_error *err) {
    struct allocation_group *groups;
    PD_TRY(pd_calloc(&groups, r->n_groups, sizeof *groups, "groups", err));
    for (size_t g = 0; g < r->n_groups; g++)
        groups[g] = (struct allocation_group){.cost = quantity_of(&r->groups[g], cost),
                                              .loss = quantity_of(&r->groups[g], loss)};
    pdvm_status status = allocation_create(groups, r->n_groups, r->n_items, limit, out, err);
    free(groups);
    return status;
}

static pdvm_status best(const struct plan_result *r, enum quantity cost, enum quantity loss,
                        double limit, struct plan_point *point, pdvm_error *err) {
    struct allocation *a;
    double total_cost, total_loss;
    PD_TRY(allocate(r, cost, loss, limit, &a, err));
    bool found = allocation_best(a, limit, point->choice, &total_cost, &total_loss);
    allocation_free(a);
    if (!found) return pd_fail(err, PDVM_ERR_RANGE, "no choice keeps the limit");
    point_predict(r, point);
    return PDVM_OK;
}

static double least_of(const struct plan_result *r, enum quantity q) {
    double sum = 0;
    for (size_t g = 0; g < r->n_groups; g++) {
        const double *x = quantity_of(&r->groups[g], q);
        double min = x[0];
        for (size_t i = 1; i < r->n_items; i++) min = fmin(min, x[i]);
        sum += min;
    }
    return sum;
}

/* ---- all matrices alike ---------------------------------------------------------------- */

static bool keeps_limit(const struct planning *p, const struct plan_item *item) {
    switch (p->options->goal) {
    case PLAN_BUDGET: return (double)item->file_bytes <= p->options->limit;
    case PLAN_SPEED: return 1 / item->speed.token >= p->options->limit;
    default: return item->kl <= p->options->limit;
    }
}

/* Whether `a` is better than `b` in what the goal leaves open. */
static bool better(const struct planning *p, const struct plan_item *a, const struct plan_item *b) {
    if (p->options->goal == PLAN_MAX_LOSS) return a->file_bytes < b->file_bytes;
    return a->kl < b->kl;
}

/* The best item that keeps the limit with all matrices alike; -1: none. */
static int best_uniform(const struct planning *p, bool dense_only) {
    const struct plan_result *r = p->result;
    int found = -1;
    for (size_t i = 0; i < r->n_items; i++) {
        if (!keeps_limit(p, &r->items[i]) || (dense_only && r->items[i].sparsity > 0)) continue;
        if (found < 0 || better(p, &r->items[i], &r->items[found])) found = (int)i;
    }
    return found;
}

static int uniform_item(const struct plan_result *r, const struct plan_point *point) {
    for (size_t g = 1; g < r->n_groups; g++)
        if (point->choice[g] != point->choice[0]) return -1;
    return (int)point->choice[0];
}

static void choose_uniform(struct plan_result *r, size_t item) {
    for (size_t g = 0; g < r->n_groups; g++) r->chosen.choice[g] = item;
    point_predict(r, &r->chosen);
    r->chosen.measured = r->items[item].kl;
}

/* A mixture must beat what needs no plan: it is measured, and so are the items. */
static void compare_with_uniform(struct planning *p) {
    struct plan_result *r = p->result;
    int item = best_uniform(p, false);
    r->best_dense = best_uniform(p, true);
    r->uniform = uniform_item(r, &r->chosen);
    if (item < 0 || r->uniform >= 0) return;
    bool wins = p->options->goal == PLAN_MAX_LOSS
                    ? (double)r->items[item].file_bytes <= r->chosen.bytes
                    : r->items[item].kl <= r->chosen.measured;
    if (!wins) return;
    choose_uniform(r, (size_t)item);
    r->uniform = item;
}

/* ---- the limit ------------------------------------------------------------------------- */

static pdvm_status too_low(const struct planning *p, pdvm_error *err) {
    const struct plan_result *r = p->result;
    switch (p->options->goal) {
    case PLAN_BUDGET:
        return pd_fail(err, PDVM_ERR_RANGE,
                       "the budget of %.2f MB is too small: the smallest choice of the menu needs "
                       "%.2f MB, of which %.2f MB are embedding, head and the rest; add more zeros "
                       "or coarser values to the menu",
                       p->options->limit / 1e6, (r->fixed_bytes + least_of(r, BYTES)) / 1e6,
                       r->fixed_bytes / 1e6);
    case PLAN_SPEED:
        return pd_fail(err, PDVM_ERR_RANGE,
                       "%.1f tokens/s are out of reach here: the fastest choice of the menu makes "
                       "%.1f; add more zeros or coarser values to the menu",
                       p->options->limit, 1 / (r->fixed_seconds + least_of(r, SECONDS)));
    default:
        return pd_fail(err, PDVM_ERR_RANGE,
                       "a loss of at most %g is out of reach: the best choice that was found has "
                       "%g; add finer values to the menu",
                       p->options->limit, r->chosen.measured);
    }
}

/* What the groups may cost in bytes or seconds. */
static double room(const struct planning *p) {
    const struct plan_result *r = p->result;
    if (p->options->goal == PLAN_BUDGET)
        return p->options->limit - r->fixed_bytes - RULE_BYTES * (double)r->n_groups;
    return 1 / p->options->limit - r->fixed_seconds;
}

pdvm_status choice_check(const struct planning *p, pdvm_error *err) {
    if (p->options->goal == PLAN_MAX_LOSS) return PDVM_OK;
    bool bytes = p->options->goal == PLAN_BUDGET;
    return least_of(p->result, bytes ? BYTES : SECONDS) > room(p) ? too_low(p, err) : PDVM_OK;
}

/* The least loss within a number of bytes or seconds. */
static pdvm_status choose_within(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    enum quantity cost = p->options->goal == PLAN_BUDGET ? BYTES : SECONDS;
    PD_TRY(best(r, cost, LOSS, room(p), &r->chosen, err));
    return point_measure(p, &r->chosen, "checking the choice", err);
}

/* The fewest bytes within a loss: tightened until the measured loss keeps the limit. */
static pdvm_status choose_by_loss(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    double wanted = p->options->limit, least = least_of(r, LOSS);
    bool last = false;
    for (int round = 0; round < MOST_ROUNDS && !last; round++) {
        double limit = pow(wanted / r->factor, 1 / r->exponent);
        last = limit <= least;
        PD_TRY(best(r, LOSS, BYTES, last ? least : limit, &r->chosen, err));
        PD_TRY(point_measure(p, &r->chosen, "checking the choice", err));
        if (r->chosen.measured <= p->options->limit) return PDVM_OK;
        wanted *= 0.98 * p->options->limit / r->chosen.measured;
    }
    int item = best_uniform(p, false);
    if (item < 0) return too_low(p, err);
    choose_uniform(r, (size_t)item);
    return PDVM_OK;
}

/* ---- the front ------------------------------------------------------------------------- */

static pdvm_status make_front(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    struct allocation *a;
    size_t n = p->options->n_front;
    if (n == 0) return PDVM_OK;
    PD_TRY(pd_calloc(&r->front, n, sizeof *r->front, "the front", err));
    PD_TRY(allocate(r, BYTES, LOSS, INFINITY, &a, err));
    double low = least_of(r, BYTES), high = 0;
    for (size_t g = 0; g < r->n_groups; g++) {
        double most = 0;
        for (size_t i = 0; i < r->n_items; i++) most = fmax(most, r->groups[g].bytes[i]);
        high += most;
    }
    pdvm_status status = PDVM_OK;
    for (size_t i = 0; i < n && status == PDVM_OK; i++) {
        double share = n > 1 ? (double)i / (double)(n - 1) : 1, cost, loss;
        struct plan_point *point = &r->front[r->n_front];
        status = new_point(r, point, err);
        if (status != PDVM_OK) break;
        r->n_front++;
        if (!allocation_best(a, low * pow(high / low, share), point->choice, &cost, &loss)) {
            free(point->choice);
            r->n_front--;
            continue;
        }
        point_predict(r, point);
        char what[48];
        snprintf(what, sizeof what, "front %zu of %zu", i + 1, n);
        status = point_measure(p, point, what, err);
    }
    allocation_free(a);
    return status;
}

pdvm_status choice_make(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    PD_TRY(new_point(r, &r->chosen, err));
    if (p->options->goal == PLAN_MAX_LOSS)
        PD_TRY(choose_by_loss(p, err));
    else
        PD_TRY(choose_within(p, err));
    compare_with_uniform(p);
    return make_front(p, err);
}

double plan_point_zeros(const struct plan_result *r, const struct plan_point *p) {
    double zeros = 0, n = 0;
    for (size_t g = 0; g < r->n_groups; g++) {
        n += (double)r->groups[g].n_weights;
        zeros += (double)r->groups[g].n_weights * r->items[p->choice[g]].sparsity;
    }
    return n > 0 ? zeros / n : 0;
}

/* ---- rules ----------------------------------------------------------------------------- */

static pdvm_status add_rule(struct planning *p, const char *pattern, const struct plan_item *item,
                            pdvm_error *err) {
    struct plan_result *r = p->result;
    char text[256], sparsity[48] = "", group[32] = "";
    int columns = p->options->convert.plan.general.group;
    if (p->options->convert.method->has_sparsity)
        snprintf(sparsity, sizeof sparsity, ",sparsity=%.6g", item->sparsity);
    if (columns >= 0) snprintf(group, sizeof group, ",group=%d", columns);
    snprintf(text, sizeof text, "%s=values=%s%s%s", pattern, mdcsr_values_name(item->values),
             sparsity, group);
    r->rules[r->n_rules] = strdup(text);
    if (!r->rules[r->n_rules]) return pd_fail_memory(err, sizeof text, "a rule");
    r->n_rules++;
    r->chosen.bytes += RULE_BYTES_OF((double)strlen(text));
    return PDVM_OK;
}

/* The item that most weights have: the rule for all, to which the others are exceptions. */
static size_t commonest(const struct plan_result *r) {
    size_t best_item = 0;
    double most = -1;
    for (size_t i = 0; i < r->n_items; i++) {
        double n = 0;
        for (size_t g = 0; g < r->n_groups; g++)
            if (r->chosen.choice[g] == i) n += (double)r->groups[g].n_weights;
        if (n <= most) continue;
        most = n;
        best_item = i;
    }
    return best_item;
}

pdvm_status rules_make(struct planning *p, pdvm_error *err) {
    struct plan_result *r = p->result;
    size_t usual = commonest(r);
    uint32_t n_layers = p->sources[0]->config.n_layers;
    PD_TRY(pd_calloc(&r->rules, 1 + 7 * (size_t)n_layers, sizeof(char *), "rules", err));
    PD_TRY(add_rule(p, "model.layers.*", &r->items[usual], err));
    for (size_t g = 0; g < r->n_groups; g++) {
        const struct plan_group *group = &r->groups[g];
        if (r->chosen.choice[g] == usual) continue;
        for (uint32_t l = 0; l < group->n_layers; l++) {
            struct tensor_info t;
            tensors_describe(&p->sources[0]->config, group->role, group->first_layer + l, &t);
            PD_TRY(add_rule(p, t.name, &r->items[r->chosen.choice[g]], err));
        }
    }
    return PDVM_OK;
}
