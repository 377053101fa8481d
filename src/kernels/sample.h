/**
 * Phase SAMPLE, by one group: joins the blocks' candidates, sorts them, and chooses the next token
 * if asked to: the likeliest, or by top-k, then top-p, min-p and temperature, as the host's sampler.
 */
#ifndef PDVM_KERNELS_SAMPLE_H
#define PDVM_KERNELS_SAMPLE_H

#include "act.h"
#include "top.h"

FN uint64_t top_of(const struct Ctx *c, uint32_t block) {
    return SH(plan).head_top + (uint64_t)block * (uint32_t)sizeof(struct gpu_top);
}

FN uint64_t candidate_of(const struct Ctx *c, uint32_t slot) {
    return top_of(c, slot / GPU_BLOCK_TOP) + (uint32_t)sizeof(struct gpu_top) -
           8 * (uint64_t)(GPU_BLOCK_TOP - slot % GPU_BLOCK_TOP);
}

/** Largest logit, its token, and the sum of exp(logit - largest), by one warp. */
FN void join_tops(const struct Ctx *c, float *largest, uint32_t *token, float *mass) {
    uint32_t key = 0, best = 0xffffffffu;
    float sum = 0.0f;
    NO_UNROLL
    for (uint32_t b = c->lane; b < c->n_blocks; b += GPU_LANES) {
        u32x4 top = G(u32x4, top_of(c, b));
        if (top.y == 0) continue; /* a block without rows */
        uint32_t k = order_of(bits_float(top.x));
        if (k > key) best = top.w;
        if (k == key) best = min_u(best, top.w);
        key = max_u(key, k);
    }
    uint32_t all = lane_max_u(key);
    *largest = order_to_float(all);
    *token = ~lane_max_u(key == all ? ~best : 0);
    NO_UNROLL
    for (uint32_t b = c->lane; b < c->n_blocks; b += GPU_LANES) {
        u32x4 top = G(u32x4, top_of(c, b));
        if (top.y) sum += bits_float(top.z) * exp_f(bits_float(top.x) - *largest);
    }
    *mass = lane_sum(sum);
}

/** Sorts n <= GPU_CANDIDATES pairs (key, slot) in group memory, best first: bitonic (Batcher 1968). */
FN void sort_candidates(const struct Ctx *c, uint32_t at, uint32_t n) {
    NO_UNROLL
    for (uint32_t i = n + c->thread; i < GPU_CANDIDATES; i += c->n_threads)
        L(u32x2, at + 8 * i) = MAKE_X2(0, 0xffffffffu);
    for (uint32_t k = 2; k <= GPU_CANDIDATES; k *= 2) {
        for (uint32_t j = k / 2; j > 0; j /= 2) {
            sync();
            NO_UNROLL
            for (uint32_t i = c->thread; i < GPU_CANDIDATES; i += c->n_threads) {
                uint32_t o = i ^ j;
                if (o < i) continue;
                u32x2 a = L(u32x2, at + 8 * i), b = L(u32x2, at + 8 * o);
                int later = a.x < b.x || (a.x == b.x && a.y > b.y);
                if (later == ((i & k) == 0)) {
                    L(u32x2, at + 8 * i) = b;
                    L(u32x2, at + 8 * o) = a;
                }
            }
        }
    }
    sync();
}

FN float candidate_logit(const struct Ctx *c, uint32_t at, uint32_t i) {
    return order_to_float(L(uint32_t, at + 8 * i));
}

/** SplitMix64 (Steele, Lea, Flood 2014): the number after `state` has been advanced n times. */
FN float random_unit(uint64_t state, uint32_t n) {
    uint64_t z = state + (uint64_t)n * 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    return (float)(uint32_t)(z >> 40) * 0x1p-24f;
}

/** Chooses among the n sorted candidates; thread 0's answer counts. */
FN uint32_t draw(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t at, uint32_t n,
                 float u) {
    float largest = candidate_logit(c, at, 0);
    uint32_t weights = at + 8 * GPU_CANDIDATES;
    n = min_u(n, max_u(p->top_k, 1));
    NO_UNROLL
    for (uint32_t i = c->thread; i < n; i += c->n_threads) {
        float d = candidate_logit(c, at, i) - largest;
        L(u32x2, weights + 8 * i) =
            MAKE_X2(float_bits(exp_f(d)), float_bits(exp_f(d / p->temperature)));
    }
    sync();
    if (c->thread != 0) return 0;
    float total = 0.0f, sum = 0.0f;
    NO_UNROLL
    for (uint32_t i = 0; i < n; i++) total += bits_float(L(u32x2, weights + 8 * i).x);
    NO_UNROLL
    for (uint32_t i = 0; i < n && p->top_p < 1.0f; i++) {
        sum += bits_float(L(u32x2, weights + 8 * i).x);
        if (sum >= p->top_p * total) n = i + 1;
    }
    /* Weights are relative to the likeliest's. */
    while (n > 1 && bits_float(L(u32x2, weights + 8 * (n - 1)).x) < p->min_p) n--;
    total = 0.0f;
    NO_UNROLL
    for (uint32_t i = 0; i < n; i++) total += bits_float(L(u32x2, weights + 8 * i).y);
    sum = 0.0f;
    NO_UNROLL
    for (uint32_t i = 0; i < n; i++) {
        sum += bits_float(L(u32x2, weights + 8 * i).y);
        if (sum > u * total) return i;
    }
    return 0; /* rounding may leave the sum a little short */
}

/** The next step's token, and whether it ends the launch. */
FN void choose(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t token) {
    uint32_t step = SH(step).index;
    G(uint32_t, SH(plan).tokens + 4 * (uint64_t)(step + 1)) = token;
    NO_UNROLL
    for (uint32_t i = 0; i < p->n_stop; i++)
        if (G(uint32_t, SH(plan).stops + 4 * i) == token) G(uint32_t, SH(plan).result) = step + 1;
}

#define TOPS_AT_ONCE 6 /* candidates that a thread loads before it uses the first */

FN void sample_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    uint64_t result = SH(plan).result;
    int sampling = (p->flags & GPU_SAMPLING) != 0;
    int list_them = (p->flags & GPU_LIST) != 0 && SH(step).index + 1 == p->n_steps;
    if (c->block != 0 || (!sampling && !list_them)) return;
    float largest, mass;
    uint32_t token, n = c->n_blocks * GPU_BLOCK_TOP, cut_blocks = 0;
    join_tops(c, &largest, &token, &mass);
    if (takes_likeliest(p)) {
        if (c->thread == 0) {
            choose(c, p, token);
            G(u32x4, result) = MAKE_X4(G(uint32_t, result), 1, 1, float_bits(mass));
            G(u32x2, result + 16) = MAKE_X2(float_bits(largest), token);
        }
        return;
    }
    uint32_t keys = SH(at_x), list = SH(at_x) + 4 * n;
    NO_UNROLL
    for (uint32_t base = c->thread; base < n; base += TOPS_AT_ONCE * c->n_threads) {
        uint32_t have[TOPS_AT_ONCE];
        float logit[TOPS_AT_ONCE];
        UNROLL
        for (uint32_t k = 0; k < TOPS_AT_ONCE; k++) {
            uint32_t i = min_u(base + k * c->n_threads, n - 1);
            have[k] = G(uint32_t, top_of(c, i / GPU_BLOCK_TOP) + 4);
            logit[k] = G(float, candidate_of(c, i));
        }
        UNROLL
        for (uint32_t k = 0; k < TOPS_AT_ONCE; k++) {
            uint32_t i = base + k * c->n_threads;
            if (i < n)
                L(uint32_t, keys + 4 * i) = i % GPU_BLOCK_TOP < have[k] ? order_of(logit[k]) : 0;
        }
    }
    struct Cut cut = find_cut(c, keys, n, list_them ? GPU_CANDIDATES : max_u(p->top_k, 1));
    NO_UNROLL
    for (uint32_t b = c->thread; b < c->n_blocks; b += c->n_threads) {
        uint32_t block_cut = G(uint32_t, top_of(c, b) + 16);
        if (block_cut && block_cut >= cut.key) cut_blocks = 1;
    }
    uint32_t slots = list + 8 * GPU_CANDIDATES; /* draw has its weights there later */
    uint32_t count = list_best(c, keys, n, cut, slots);
    NO_UNROLL
    for (uint32_t i = c->thread; i < count; i += c->n_threads) {
        uint32_t slot = L(uint32_t, slots + 4 * i);
        L(u32x2, list + 8 * i) = MAKE_X2(L(uint32_t, keys + 4 * slot), slot);
    }
    float none = 0.0f;
    group_reduce(c, &none, &cut_blocks);
    sort_candidates(c, list, count);
    NO_UNROLL
    for (uint32_t i = c->thread; i < count; i += c->n_threads) {
        u32x2 pair = L(u32x2, list + 8 * i);
        uint32_t name = G(uint32_t, candidate_of(c, pair.y) + 4);
        G(u32x2, result + 16 + 8 * (uint64_t)i) = MAKE_X2(float_bits(order_to_float(pair.x)), name);
    }
    if (c->thread == 0)
        G(u32x4, result) =
            MAKE_X4(G(uint32_t, result), count, cut_blocks ? 0 : 1, float_bits(mass));
    if (!sampling) return;
    uint32_t i = draw(c, p, list, count, random_unit(p->seed, SH(step).index + 1));
    if (c->thread == 0)
        choose(c, p, G(uint32_t, candidate_of(c, L(uint32_t, list + 8 * i + 4)) + 4));
}

#endif
