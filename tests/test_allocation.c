/* Choosing one item per group within a limit: against trying everything, and on large problems. */
#include "base/random.h"
#include "plan/allocation.h"
#include "support/support.h"

#include <math.h>

#define MOST_GROUPS 300
#define MOST_ITEMS 12

struct problem {
    double cost[MOST_GROUPS][MOST_ITEMS], loss[MOST_GROUPS][MOST_ITEMS];
    struct allocation_group groups[MOST_GROUPS];
    size_t n, n_items;
};

/* Items that cost more lose less, roughly. */
static void make(struct problem *p, size_t n, size_t n_items, uint64_t *seed) {
    p->n = n;
    p->n_items = n_items;
    for (size_t g = 0; g < n; g++) {
        double weight = 0.1 + pd_random_unit(seed), size = 10 + 1000 * pd_random_unit(seed);
        for (size_t i = 0; i < n_items; i++) {
            double share = pd_random_unit(seed);
            p->cost[g][i] = size * share;
            p->loss[g][i] = weight * exp(-6 * share) * (0.5 + pd_random_unit(seed));
        }
        p->groups[g] = (struct allocation_group){p->cost[g], p->loss[g]};
    }
}

/* The least loss of groups [g, n) within a limit, by trying everything. */
static double try_all(const struct problem *p, size_t g, double limit) {
    if (limit < 0) return INFINITY;
    if (g == p->n) return 0;
    double best = INFINITY;
    for (size_t i = 0; i < p->n_items; i++)
        best = fmin(best, p->loss[g][i] + try_all(p, g + 1, limit - p->cost[g][i]));
    return best;
}

static void sums(const struct problem *p, const size_t *choice, double *cost, double *loss) {
    *cost = *loss = 0;
    for (size_t g = 0; g < p->n; g++) {
        assert_true(choice[g] < p->n_items);
        *cost += p->cost[g][choice[g]];
        *loss += p->loss[g][choice[g]];
    }
}

static double total(const struct problem *p, bool cheapest) {
    double sum = 0;
    for (size_t g = 0; g < p->n; g++) {
        double x = p->cost[g][0];
        for (size_t i = 1; i < p->n_items; i++)
            x = cheapest ? fmin(x, p->cost[g][i]) : fmax(x, p->cost[g][i]);
        sum += x;
    }
    return sum;
}

static void small_problems_are_solved_exactly(void **state) {
    (void)state;
    static struct problem p;
    uint64_t seed = 1;
    pdvm_error err;
    for (int round = 0; round < 60; round++) {
        make(&p, 1 + (size_t)round % 6, 1 + pd_random(&seed) % 4, &seed);
        double low = total(&p, true), high = total(&p, false);
        struct allocation *all;
        assert_ok(allocation_create(p.groups, p.n, p.n_items, INFINITY, &all, &err), &err);
        for (int i = 0; i <= 10; i++) {
            double limit = low + (high - low) * i / 10 + 1e-9, expected = try_all(&p, 0, limit);
            struct allocation *a;
            size_t choice[MOST_GROUPS];
            double cost, loss, real_cost, real_loss;
            assert_ok(allocation_create(p.groups, p.n, p.n_items, limit, &a, &err), &err);
            const struct allocation *both[2] = {a, all};
            for (int k = 0; k < 2; k++) {
                assert_true(allocation_best(both[k], limit, choice, &cost, &loss));
                sums(&p, choice, &real_cost, &real_loss);
                assert_true(real_cost <= limit + 1e-9);
                assert_true(fabs(real_loss - expected) <= 1e-12 + 1e-12 * expected);
                assert_true(fabs(real_loss - loss) <= 1e-12 + 1e-12 * expected);
                assert_true(fabs(real_cost - cost) <= 1e-9);
            }
            allocation_free(a);
        }
        allocation_free(all);
    }
}

/* No choice is better than the best of the relaxed problem in which groups may mix two items. */
static double lower_bound(const struct problem *p, double limit) {
    double best = 0;
    for (int step = -1600; step < 200; step++) {
        double lambda = exp(0.01 * step), bound = -lambda * limit;
        for (size_t g = 0; g < p->n; g++) {
            double least = INFINITY;
            for (size_t i = 0; i < p->n_items; i++)
                least = fmin(least, p->loss[g][i] + lambda * p->cost[g][i]);
            bound += least;
        }
        best = fmax(best, bound);
    }
    return best;
}

static void large_problems_are_solved_within_a_percent_of_the_bound(void **state) {
    (void)state;
    static struct problem p;
    uint64_t seed = 2;
    pdvm_error err;
    make(&p, MOST_GROUPS, MOST_ITEMS, &seed);
    double low = total(&p, true), high = total(&p, false);
    for (int i = 1; i < 10; i += 4) {
        double limit = low + (high - low) * i / 10, cost, loss, real_cost, real_loss;
        size_t choice[MOST_GROUPS];
        struct allocation *a;
        assert_ok(allocation_create(p.groups, p.n, p.n_items, limit, &a, &err), &err);
        assert_true(allocation_best(a, limit, choice, &cost, &loss));
        sums(&p, choice, &real_cost, &real_loss);
        assert_true(real_cost <= limit * (1 + 1e-9));
        assert_true(fabs(real_loss - loss) <= 1e-9 * loss);
        if (loss > 1.01 * lower_bound(&p, limit))
            support_fail("%g, the bound is %g", loss, lower_bound(&p, limit));
        allocation_free(a);
    }
}

static void the_limit_may_be_met_exactly(void **state) {
    (void)state;
    const double cost[2] = {0.1, 0.2}, loss[2] = {1, 0};
    struct allocation_group groups[3];
    for (int g = 0; g < 3; g++) groups[g] = (struct allocation_group){cost, loss};
    struct allocation *a;
    pdvm_error err;
    size_t choice[3];
    double c, l;
    assert_ok(allocation_create(groups, 3, 2, 0.6, &a, &err), &err); /* 0.2 + 0.2 + 0.2 > 0.6 */
    assert_true(allocation_best(a, 0.6, choice, &c, &l));
    assert_true(l == 0);
    assert_true(allocation_best(a, 0.3, choice, &c, &l));
    assert_true(l == 3);
    assert_false(allocation_best(a, 0.29, choice, &c, &l));
    allocation_free(a);
    assert_error(allocation_create(groups, 3, 2, 0.29, &a, &err), PDVM_ERR_RANGE, &err,
                 "even the cheapest choice");
    assert_null(a);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_problems_are_solved_exactly),
        cmocka_unit_test(large_problems_are_solved_within_a_percent_of_the_bound),
        cmocka_unit_test(the_limit_may_be_met_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
