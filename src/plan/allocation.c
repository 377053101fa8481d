#include "plan/allocation.h"
#include "base/alloc.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#define MOST_STATES ((size_t)1 << 14)

/* A sum over the first groups, and how it came about. */
struct state {
    double cost, loss;
    uint32_t parent; /* state of the groups before */
    uint32_t item;
};

/* The sums over one more group: rising costs, falling losses. */
struct level {
    struct state *states;
    size_t n;
};

struct allocation {
    struct level *levels; /* [n] */
    size_t n;
};

static int by_cost(const void *a, const void *b) {
    const struct state *x = a, *y = b;
    if (x->cost != y->cost) return x->cost < y->cost ? -1 : 1;
    return (x->loss > y->loss) - (x->loss < y->loss);
}

/* Keeps those of s[n], by rising cost, that lose less than all before them. */
static size_t drop_beaten(struct state *s, size_t n) {
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (kept == 0 || s[i].loss < s[kept - 1].loss) s[kept++] = s[i];
    return kept;
}

/* What one group adds: the costs that are still to come at least, and the range of costs. */
struct step {
    const struct allocation_group *group;
    size_t n_items;
    double limit; /* of the sums with this group: what comes after needs the rest */
    double low, high;
};

static bool next_state(const struct step *step, const struct level *before, size_t parent,
                       size_t item, struct state *out) {
    out->cost = before->states[parent].cost + step->group->cost[item];
    out->loss = before->states[parent].loss + step->group->loss[item];
    out->parent = (uint32_t)parent;
    out->item = (uint32_t)item;
    return out->cost <= step->limit;
}

static size_t extend_all(const struct step *step, const struct level *before, struct state *out) {
    size_t n = 0;
    for (size_t p = 0; p < before->n; p++)
        for (size_t i = 0; i < step->n_items; i++)
            if (next_state(step, before, p, i, &out[n])) n++;
    qsort(out, n, sizeof *out, by_cost);
    return drop_beaten(out, n);
}

/* Into MOST_STATES drawers by cost. The cheapest sum of all has the first for itself. */
static size_t extend_drawers(const struct step *step, const struct level *before,
                             struct state *out) {
    double width = (step->high - step->low) / (double)(MOST_STATES - 1);
    for (size_t i = 0; i < MOST_STATES; i++) out[i].loss = INFINITY;
    for (size_t p = 0; p < before->n; p++) {
        for (size_t i = 0; i < step->n_items; i++) {
            struct state s;
            if (!next_state(step, before, p, i, &s)) continue;
            size_t drawer = 0;
            if (s.cost > step->low && width > 0)
                drawer = 1 + (size_t)((s.cost - step->low) / width);
            if (drawer >= MOST_STATES) drawer = MOST_STATES - 1;
            if (s.loss < out[drawer].loss ||
                (s.loss == out[drawer].loss && s.cost < out[drawer].cost))
                out[drawer] = s;
        }
    }
    size_t n = 0;
    for (size_t i = 0; i < MOST_STATES; i++)
        if (out[i].loss < INFINITY) out[n++] = out[i];
    return drop_beaten(out, n);
}

static double least(const double *x, size_t n) {
    double min = x[0];
    for (size_t i = 1; i < n; i++) min = fmin(min, x[i]);
    return min;
}

static double most(const double *x, size_t n) {
    double max = x[0];
    for (size_t i = 1; i < n; i++) max = fmax(max, x[i]);
    return max;
}

static pdvm_status extend(const struct step *step, const struct level *before, struct level *out,
                          pdvm_error *err) {
    size_t all = before->n * step->n_items;
    bool few = all <= MOST_STATES;
    PD_TRY(pd_calloc(&out->states, few ? all : MOST_STATES, sizeof *out->states, "an allocation",
                     err));
    out->n =
        few ? extend_all(step, before, out->states) : extend_drawers(step, before, out->states);
    struct state *fitting = realloc(out->states, (out->n ? out->n : 1) * sizeof *out->states);
    if (fitting) out->states = fitting;
    return PDVM_OK;
}

static pdvm_status build(struct allocation *a, const struct allocation_group *groups,
                         size_t n_items, double limit, pdvm_error *err) {
    struct state zero = {0};
    struct level start = {&zero, 1};
    double cheapest = 0;
    for (size_t g = 0; g < a->n; g++) cheapest += least(groups[g].cost, n_items);
    /* Sums in another order may differ in the last bits. */
    double slack = 1e-12 * cheapest;
    if (cheapest > limit + slack)
        return pd_fail(err, PDVM_ERR_RANGE, "even the cheapest choice costs %g, the limit is %g",
                       cheapest, limit);
    struct step step = {.n_items = n_items};
    double rest = cheapest;
    for (size_t g = 0; g < a->n; g++) {
        step.group = &groups[g];
        step.low += least(groups[g].cost, n_items);
        step.high += most(groups[g].cost, n_items);
        rest -= least(groups[g].cost, n_items);
        step.limit = limit + slack - rest;
        if (step.high > step.limit) step.high = step.limit;
        PD_TRY(extend(&step, g > 0 ? &a->levels[g - 1] : &start, &a->levels[g], err));
    }
    return PDVM_OK;
}

pdvm_status allocation_create(const struct allocation_group *groups, size_t n, size_t n_items,
                              double limit, struct allocation **out, pdvm_error *err) {
    struct allocation *a;
    *out = NULL;
    PD_TRY(pd_calloc(&a, 1, sizeof *a, "an allocation", err));
    a->n = n;
    pdvm_status status = pd_calloc(&a->levels, n, sizeof *a->levels, "an allocation", err);
    if (status == PDVM_OK) status = build(a, groups, n_items, limit, err);
    if (status == PDVM_OK)
        *out = a;
    else
        allocation_free(a);
    return status;
}

bool allocation_best(const struct allocation *a, double limit, size_t *choice, double *cost,
                     double *loss) {
    const struct level *last = &a->levels[a->n - 1];
    size_t at = last->n;
    while (at > 0 && last->states[at - 1].cost > limit * (1 + 1e-12)) at--;
    if (at == 0) return false;
    const struct state *s = &last->states[at - 1];
    *cost = s->cost;
    *loss = s->loss;
    for (size_t g = a->n; g-- > 0;) {
        choice[g] = s->item;
        if (g > 0) s = &a->levels[g - 1].states[s->parent];
    }
    return true;
}

void allocation_free(struct allocation *a) {
    if (!a) return;
    for (size_t g = 0; a->levels && g < a->n; g++) free(a->levels[g].states);
    free(a->levels);
    free(a);
}
