#include "engine/sampler.h"

#include <math.h>

/* How many are sorted at first when nobody knows how many will be needed; then four times more. */
#define FIRST_SORTED 64

/* Whether a comes before b. A total order: no two candidates have the same token. */
static bool before(const struct sampler_candidate *a, const struct sampler_candidate *b) {
    if (a->key != b->key) return a->key > b->key;
    return a->token < b->token;
}

/* Heap whose root comes last of all. */
static void sift_down(struct sampler_candidate *heap, size_t n, size_t i) {
    struct sampler_candidate item = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && before(&heap[child], &heap[child + 1])) child++;
        if (!before(&item, &heap[child])) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = item;
}

static void swap(struct sampler_candidate *a, struct sampler_candidate *b) {
    struct sampler_candidate t = *a;
    *a = *b;
    *b = t;
}

void sampler_sort(struct sampler_candidates *c, size_t want) {
    if (want > c->n) want = c->n;
    if (want <= c->n_sorted) return;
    struct sampler_candidate *rest = c->items + c->n_sorted;
    size_t n = c->n - c->n_sorted, m = want - c->n_sorted;
    for (size_t i = m / 2; i-- > 0;) sift_down(rest, m, i);
    for (size_t i = m; i < n; i++) {
        if (before(&rest[i], &rest[0])) {
            swap(&rest[i], &rest[0]);
            sift_down(rest, m, 0);
        }
    }
    for (size_t i = m; i-- > 1;) {
        swap(&rest[0], &rest[i]);
        sift_down(rest, i, 0);
    }
    c->n_sorted = want;
}

/* Sorts in growing portions, so that a few of many cost little. */
static void sort_past(struct sampler_candidates *c, size_t i) {
    while (c->n_sorted <= i && c->n_sorted < c->n)
        sampler_sort(c, c->n_sorted < FIRST_SORTED ? FIRST_SORTED : 4 * c->n_sorted);
}

static double largest_logit(const struct sampler_candidates *c) {
    double largest = -INFINITY;
    for (size_t i = 0; i < c->n; i++)
        if (c->items[i].logit > largest) largest = c->items[i].logit;
    return largest;
}

/* Sum of exp((logit - largest) / temperature). */
static double total_mass(const struct sampler_candidates *c, double largest, double temperature) {
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) sum += exp((c->items[i].logit - largest) / temperature);
    return sum;
}

static void keep_first(struct sampler_candidates *c, size_t n) {
    c->n = n;
    if (c->n_sorted > n) c->n_sorted = n;
}

static void order_by_logit(struct sampler_candidates *c) {
    for (size_t i = 0; i < c->n; i++) c->items[i].key = c->items[i].logit;
    c->n_sorted = 0;
}

void sampler_top_k(struct sampler_candidates *c, size_t k) {
    if (k >= c->n) return;
    sampler_sort(c, k);
    keep_first(c, k);
}

void sampler_typical(struct sampler_candidates *c, double p) {
    double largest = largest_logit(c), log_total = log(total_mass(c, largest, 1));
    double entropy = 0;
    for (size_t i = 0; i < c->n; i++) {
        double log_p = c->items[i].logit - largest - log_total;
        double probability = exp(log_p);
        if (probability > 0) entropy -= probability * log_p;
    }
    for (size_t i = 0; i < c->n; i++) {
        double surprise = -(c->items[i].logit - largest - log_total);
        c->items[i].key = -fabs(surprise - entropy);
    }
    c->n_sorted = 0;
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) {
        sort_past(c, i);
        sum += exp(c->items[i].logit - largest - log_total);
        if (sum > p) {
            keep_first(c, i + 1);
            break;
        }
    }
    order_by_logit(c);
}

void sampler_top_p(struct sampler_candidates *c, double p) {
    double largest = largest_logit(c), total = total_mass(c, largest, 1);
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) {
        sort_past(c, i);
        sum += exp(c->items[i].logit - largest);
        if (sum >= p * total) {
            keep_first(c, i + 1);
            return;
        }
    }
}

void sampler_min_p(struct sampler_candidates *c, double p) {
    double least = largest_logit(c) + log(p);
    size_t kept = 0, kept_sorted = 0;
    for (size_t i = 0; i < c->n; i++) {
        if (c->items[i].logit < least) continue;
        c->items[kept++] = c->items[i];
        if (i < c->n_sorted) kept_sorted = kept;
    }
    c->n = kept;
    c->n_sorted = kept_sorted;
}

int32_t sampler_draw(struct sampler_candidates *c, double temperature, double u) {
    double largest = largest_logit(c), target = u * total_mass(c, largest, temperature);
    double sum = 0;
    for (size_t i = 0; i < c->n; i++) {
        sort_past(c, i);
        sum += exp((c->items[i].logit - largest) / temperature);
        if (sum > target) return c->items[i].token;
    }
    // Rounding may leave the sum a little short; then it is the likeliest, which always exists.
    return c->items[0].token;
}
