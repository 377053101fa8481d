/** The best of many logits: exact and in a fixed order. */
#ifndef PDVM_KERNELS_TOP_H
#define PDVM_KERNELS_TOP_H

#include "group.h"

/** Where the best `want` of a list end: all above `key`, and `equal` of those that equal it. */
struct Cut {
    uint32_t key;
    uint32_t equal;
};

#define KEYS_AT_ONCE 20 /* keys of a thread that stay in registers */

/** How many of the group's keys are not below `least`; `slot`: a counter that nobody has used. */
FN uint32_t count_keys(const struct Ctx *c, uint32_t keys, uint32_t n,
                       const uint32_t own[KEYS_AT_ONCE], uint32_t least, uint32_t slot) {
    uint32_t count = 0;
    UNROLL
    for (uint32_t k = 0; k < KEYS_AT_ONCE; k++) count += own[k] >= least ? 1u : 0u;
    NO_UNROLL
    for (uint32_t i = c->thread + KEYS_AT_ONCE * c->n_threads; i < n; i += c->n_threads)
        count += L(uint32_t, keys + 4 * i) >= least ? 1u : 0u;
    count = lane_sum_u(count);
    if (c->lane == 0 && count) local_add(&SH(histogram)[slot], count);
    sync();
    return SH(histogram)[slot];
}

/**
 * Finds the cut behind the best `want` of keys[n] in group memory, bit by bit; zeros don't count.
 * Syncs before the first read, so keys may just have been written. key 0: there are no more than
 * `want`.
 */
FN struct Cut find_cut(const struct Ctx *c, uint32_t keys, uint32_t n, uint32_t want) {
    struct Cut cut;
    uint32_t own[KEYS_AT_ONCE], above = 0;
    cut.key = 0;
    cut.equal = want;
    NO_UNROLL
    for (uint32_t i = c->thread; i < 64; i += c->n_threads) SH(histogram)[i] = 0;
    sync();
    UNROLL
    for (uint32_t k = 0; k < KEYS_AT_ONCE; k++) {
        uint32_t i = c->thread + k * c->n_threads;
        own[k] = i < n ? L(uint32_t, keys + 4 * i) : 0;
    }
    if (count_keys(c, keys, n, own, 1, 32) <= want) {
        sync(); /* the counters are used again */
        return cut;
    }
    NO_UNROLL
    for (uint32_t bit = 32; bit-- > 0;) {
        uint32_t least = cut.key | 1u << bit;
        uint32_t count = count_keys(c, keys, n, own, least, bit);
        if (count >= want)
            cut.key = least;
        else
            above = count; /* of the lowest key that was too high: the next one at the end */
    }
    cut.equal = want - above;
    sync(); /* the counters are used again */
    return cut;
}

/**
 * Lists the indexes of the keys that the cut leaves, ascending, at `to` in group memory. Returns
 * their number on every thread, behind a sync.
 */
FN uint32_t list_best(const struct Ctx *c, uint32_t keys, uint32_t n, struct Cut cut, uint32_t to) {
    uint32_t per_warp = round_up_u((n + c->n_warps - 1) / c->n_warps, GPU_LANES);
    uint32_t begin = c->warp * per_warp, end = min_u(begin + per_warp, n);
    uint32_t before = (1u << c->lane) - 1;
    uint32_t more = 0, equal = 0;
    NO_UNROLL
    for (uint32_t i = begin; i < end; i += GPU_LANES) {
        uint32_t key = i + c->lane < n ? L(uint32_t, keys + 4 * (i + c->lane)) : 0;
        more += count_bits(lane_ballot(key > cut.key));
        equal += count_bits(lane_ballot(key == cut.key && key != 0));
    }
    if (c->lane == 0) {
        SH(histogram)[c->warp] = more;
        SH(histogram)[c->warp + GPU_MAX_WARPS] = equal;
    }
    sync();
    uint32_t more_before = 0, equal_before = 0, total = 0, all_equal = 0;
    NO_UNROLL
    for (uint32_t i = 0; i < c->n_warps; i++) {
        uint32_t m = SH(histogram)[i], e = SH(histogram)[i + GPU_MAX_WARPS];
        if (i < c->warp) more_before += m;
        if (i < c->warp) equal_before += e;
        total += m;
        all_equal += e;
    }
    total += min_u(all_equal, cut.equal);
    NO_UNROLL
    for (uint32_t i = begin; i < end; i += GPU_LANES) {
        uint32_t key = i + c->lane < n ? L(uint32_t, keys + 4 * (i + c->lane)) : 0;
        uint32_t m = lane_ballot(key > cut.key);
        uint32_t e = lane_ballot(key == cut.key && key != 0);
        uint32_t m_rank = more_before + count_bits(m & before);
        uint32_t e_rank = equal_before + count_bits(e & before);
        int take = m >> c->lane & 1 || (e >> c->lane & 1 && e_rank < cut.equal);
        if (take) L(uint32_t, to + 4 * (m_rank + min_u(e_rank, cut.equal))) = i + c->lane;
        more_before += count_bits(m);
        equal_before += count_bits(e);
    }
    sync();
    return total;
}

#define RANKED 1024u /* most rows whose ranks are counted one by one */

/** Place of row r among the block's rows: those above it, and equal ones in front of it. */
FN uint32_t rank_of(const struct Ctx *c, uint32_t rows, uint32_t r) {
    uint32_t key = L(uint32_t, SUMS_LO + 4 * r), rank = 0;
    NO_UNROLL
    for (uint32_t i = 0; i < rows; i += 4) {
        u32x4 o = L(u32x4, SUMS_LO + 4 * i);
        rank += o.x > key || (o.x == key && i < r) ? 1u : 0u;
        rank += o.y > key || (o.y == key && i + 1 < r) ? 1u : 0u;
        rank += o.z > key || (o.z == key && i + 2 < r) ? 1u : 0u;
        rank += o.w > key || (o.w == key && i + 3 < r) ? 1u : 0u;
    }
    return rank;
}

/** Whether the likeliest token is all that a launch wants to know. */
FN int takes_likeliest(LOCAL const struct gpu_launch *p) {
    return p->flags & GPU_SAMPLING && !(p->flags & GPU_LIST) &&
           (p->temperature <= 0.0f || p->top_k == 1);
}

/** The largest key of the block's rows and the lowest row that has it, at found[3] and [4]. */
FN void find_best(const struct Ctx *c, uint32_t rows) {
    float none = 0.0f;
    uint32_t largest = 0, best = 0;
    NO_UNROLL
    for (uint32_t r = c->thread; r < rows; r += c->n_threads)
        largest = max_u(largest, L(uint32_t, SUMS_LO + 4 * r));
    group_reduce(c, &none, &largest);
    if (c->thread == 0) SH(found)[3] = largest;
    sync();
    NO_UNROLL
    for (uint32_t r = c->thread; r < rows; r += c->n_threads)
        if (L(uint32_t, SUMS_LO + 4 * r) == SH(found)[3]) best = max_u(best, ~r);
    group_reduce(c, &none, &best);
    if (c->thread == 0) SH(found)[4] = ~best;
    sync();
}

FN void put_candidate(const struct Ctx *c, uint64_t top, uint32_t i, uint32_t row0, uint32_t r) {
    uint64_t at = top + (uint32_t)sizeof(struct gpu_top) - 8 * (uint64_t)(GPU_BLOCK_TOP - i);
    G(u32x2, at) = MAKE_X2(float_bits(order_to_float(L(uint32_t, SUMS_LO + 4 * r))), row0 + r);
}

/**
 * From the keys of the block's rows, at SUMS_LO, to its part of the candidates. Needs no sync before;
 * equal keys keep the order of their rows.
 */
FN void block_top(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t row0,
                  uint32_t rows) {
    uint64_t to = SH(plan).head_top + (uint64_t)c->block * (uint32_t)sizeof(struct gpu_top);
    int list_them = !takes_likeliest(p);
    uint32_t n = min_u(rows, list_them ? GPU_BLOCK_TOP : 1);
    sync(); /* nobody needs the sums any more, whose high halves may follow the keys */
    if (c->thread < 4) L(uint32_t, SUMS_LO + 4 * (rows + c->thread)) = 0;
    if (c->thread == 0) SH(found)[5] = 0;
    sync();
    if (list_them && rows <= RANKED) {
        NO_UNROLL
        for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
            uint32_t rank = rank_of(c, rows, r), key = L(uint32_t, SUMS_LO + 4 * r);
            if (rank < n) put_candidate(c, to, rank, row0, r);
            if (rank == 0) SH(found)[3] = key;
            if (rank == 0) SH(found)[4] = r;
            if (rank + 1 == n && n < rows) SH(found)[5] = key;
        }
        sync();
    } else {
        find_best(c, rows);
    }
    if (list_them && rows > RANKED) {
        struct Cut cut = find_cut(c, SUMS_LO, rows, GPU_BLOCK_TOP);
        n = list_best(c, SUMS_LO, rows, cut, SH(at_x));
        NO_UNROLL
        for (uint32_t i = c->thread; i < n; i += c->n_threads)
            put_candidate(c, to, i, row0, L(uint32_t, SH(at_x) + 4 * i));
        if (c->thread == 0) SH(found)[5] = cut.key;
    }
    float mass = 0.0f, largest = order_to_float(SH(found)[3]);
    NO_UNROLL
    for (uint32_t r = c->thread; r < rows; r += c->n_threads)
        mass += exp_f(order_to_float(L(uint32_t, SUMS_LO + 4 * r)) - largest);
    uint32_t none = 0;
    group_reduce(c, &mass, &none);
    if (c->thread == 0) {
        uint32_t top = rows ? float_bits(largest) : 0;
        G(u32x4, to) = MAKE_X4(top, n, float_bits(mass), row0 + SH(found)[4]);
        G(u32x4, to + 16) = MAKE_X4(SH(found)[5], 0, 0, 0);
    }
}

#endif
