/** The best of many logits: radix selection (as in Alabi et al. 2012), exact and in a fixed order. */
#ifndef PDVM_KERNELS_TOP_H
#define PDVM_KERNELS_TOP_H

#include "group.h"

/** Floats as integers of the same order; never 0 for a number. */
FN uint32_t order_of(float v) {
    uint32_t u = float_bits(v);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

FN float order_to_float(uint32_t o) {
    return bits_float(o & 0x80000000u ? o & 0x7fffffffu : ~o);
}

/** Where the best `want` of a list end: all above `key`, and `equal` of those that equal it. */
struct Cut {
    uint32_t key;
    uint32_t equal;
};

/** Inclusive sum over the lanes up to this one. */
FN uint32_t lane_scan(const struct Ctx *c, uint32_t v) {
    for (uint32_t d = 1; d < GPU_LANES; d *= 2) {
        uint32_t o = lane_get_u(v, (c->lane - d) % GPU_LANES);
        if (c->lane >= d) v += o;
    }
    return v;
}

/**
 * Finds the cut behind the best `want` of keys[n] in group memory; zeros don't count. Syncs before
 * the first read, so keys may just have been written. key 0: there are no more than `want`.
 */
FN struct Cut find_cut(const struct Ctx *c, uint32_t keys, uint32_t n, uint32_t want) {
    struct Cut cut;
    uint32_t mask = 0;
    cut.key = 0;
    cut.equal = want;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = c->thread; i < 256; i += c->n_threads) SH(histogram)[i] = 0;
        sync();
        for (uint32_t i = c->thread; i < n; i += c->n_threads) {
            uint32_t key = L(uint32_t, keys + 4 * i);
            if (key != 0 && (key & mask) == cut.key)
                local_add(&SH(histogram)[key >> shift & 255u], 1);
        }
        sync();
        if (c->warp == 0) {
            uint32_t first = 255 - 8 * c->lane, sum = 0;
            for (uint32_t i = 0; i < 8; i++) sum += SH(histogram)[first - i];
            uint32_t above = lane_scan(c, sum) - sum;
            /* On the lane where the count goes past what is wanted. */
            int here = above < cut.equal && above + sum >= cut.equal;
            uint32_t enough = lane_ballot(here);
            if (here) {
                uint32_t bin = first;
                while (above + SH(histogram)[bin] < cut.equal) above += SH(histogram)[bin--];
                SH(found)[1] = bin;
                SH(found)[2] = above;
            }
            if (c->lane == 0) SH(found)[0] = enough;
        }
        sync();
        if (SH(found)[0] == 0) { /* the first time around only: fewer than wanted */
            cut.key = 0;
            return cut;
        }
        cut.key |= SH(found)[1] << shift;
        cut.equal -= SH(found)[2];
        mask |= 255u << shift;
    }
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
    for (uint32_t i = 0; i < c->n_warps; i++) {
        uint32_t m = SH(histogram)[i], e = SH(histogram)[i + GPU_MAX_WARPS];
        if (i < c->warp) more_before += m;
        if (i < c->warp) equal_before += e;
        total += m;
        all_equal += e;
    }
    total += min_u(all_equal, cut.equal);
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

/** From the keys of the block's rows, at SUMS_LO, to its part of the candidates. */
FN void block_top(const struct Ctx *c, const struct Run *run, uint32_t row0, uint32_t rows) {
    uint64_t to = SH(plan).head_top + (uint64_t)c->block * (uint32_t)sizeof(struct gpu_top);
    float mass = 0.0f;
    uint32_t largest = 0;
    for (uint32_t r = c->thread; r < rows; r += c->n_threads)
        largest = max_u(largest, L(uint32_t, SUMS_LO + 4 * r));
    group_reduce(c, &mass, &largest);
    if (c->thread == 0) SH(found)[3] = largest;
    struct Cut cut = find_cut(c, SUMS_LO, rows, GPU_BLOCK_TOP);
    largest = SH(found)[3];
    uint32_t n = list_best(c, SUMS_LO, rows, cut, run->x);
    uint32_t best = rows;
    for (uint32_t r = c->thread; r < rows; r += c->n_threads) {
        uint32_t key = L(uint32_t, SUMS_LO + 4 * r);
        mass += exp_f(order_to_float(key) - order_to_float(largest));
        if (key == largest) best = min_u(best, r);
    }
    for (uint32_t i = c->thread; i < n; i += c->n_threads) {
        uint32_t r = L(uint32_t, run->x + 4 * i);
        uint64_t at = to + (uint32_t)sizeof(struct gpu_top) - 8 * (uint64_t)(GPU_BLOCK_TOP - i);
        G(u32x2, at) = MAKE_X2(float_bits(order_to_float(L(uint32_t, SUMS_LO + 4 * r))), row0 + r);
    }
    best = ~best; /* the lowest row is wanted */
    group_reduce(c, &mass, &best);
    if (c->thread == 0) {
        G(u32x4, to) =
            MAKE_X4(float_bits(order_to_float(largest)), n, float_bits(mass), row0 + ~best);
        G(u32x4, to + 16) = MAKE_X4(rows > n ? cut.key : 0, 0, 0, 0);
    }
}

#endif
