/**
 * Phase ATTN: norms of heads, RoPE (Su et al. 2021), the new key and value into the cache, and
 * attention with online softmax (Milakov and Gimelshein 2018).
 *
 * The work is a row of units, kv heads with all their queries, or single query heads where there is not
 * much to read; each has the rows that are seen of it. Groups take equal pieces of that row, so a unit
 * may be split among groups and a group have the end of one unit and the beginning of the next. The group
 * that has the end of a unit appends the new row, so nobody waits for it.
 */
#ifndef PDVM_KERNELS_ATTN_H
#define PDVM_KERNELS_ATTN_H

#include "attn_many.h"
#include "attn_one.h"

/** Contexts of so few rows are not split. */
#define SHORT_CONTEXT 256u

/**
 * Query heads that share keys and values are units of their own up to so many elements of keys, all
 * query heads together: the second level cache delivers these sooner than a unit of many is prepared.
 */
#define SINGLE_HEADS (4u << 20)

#define UNIT_COST 64u  /* rows that take as long as what there is to do for each unit */
#define LEAST_ROWS 96u /* that are worth a group of their own */

/** Rows of a group, counting UNIT_COST rows in front of each unit: a unit has `cost` of them. */
FN uint32_t rows_of_group(const struct Ctx *c, uint32_t units, uint32_t cost, int whole) {
    uint32_t n = SH(plan).head_dim, most = min_u(SH(plan).max_splits, GPU_LANES);
    if (whole || most < 2 || n % 4 != 0 || SH(plan).group > GPU_LINE / 4)
        return (units + c->n_blocks - 1) / c->n_blocks * cost;
    uint32_t each = (units * cost + c->n_blocks - 1) / c->n_blocks;
    return max_u(max_u(each, LEAST_ROWS), (cost + most - 2) / (most - 1));
}

/** Rows [begin, end) of a unit, which are number `split` of `splits`. */
struct Piece {
    struct Unit u;
    uint32_t begin, end;
    uint32_t split, splits;
};

/**
 * Takes the group's next piece off its rows, of which the first `done` are behind it; 0: there is
 * none. `cached`: rows that are seen of a unit of `heads` query heads, but the new one. All is worked out
 * anew each time: few values have to be kept while the group is at work on a piece.
 */
FN int piece_next(const struct Ctx *c, uint32_t cached, uint32_t heads, uint32_t *done,
                  struct Piece *piece) {
    int whole = cached < SHORT_CONTEXT;
    uint32_t cost = cached + UNIT_COST;
    uint32_t units = heads == 1 ? SH(plan).n_heads : SH(plan).n_kv_heads;
    uint32_t each = rows_of_group(c, units, cost, whole), at = c->block * each + *done;
    uint32_t stop = min_u((c->block + 1) * each, units * cost);
    if (*done >= each || at >= stop) return 0;
    uint32_t unit = at / cost, row0 = unit * cost + UNIT_COST, end = row0 + cached;
    piece->begin = at > row0 ? at - row0 : 0;
    piece->split = 0;
    piece->splits = 1;
    if (!whole) {
        if (stop <= row0) return 0; /* nothing of the unit but its cost */
        piece->splits = (end - 1) / each - row0 / each + 1;
        piece->split = c->block - row0 / each;
    }
    stop = min_u(stop, end);
    piece->end = stop - row0;
    piece->u.n = heads;
    piece->u.head = unit * heads;
    piece->u.kv_head = SH(plan).group == heads ? unit : unit / SH(plan).group;
    *done = stop - c->block * each;
    return 1;
}

/** The first slot that a phase sees, where attends_one is true. */
FN uint32_t first_seen(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    uint32_t end = SH(step).n_visible, window = ph->window;
    return window > 0 && end > window ? end - window : 0;
}

/**
 * Brings the rows of a group's first head into the second level cache, if the context is short: threads
 * from `from` on, before the barrier in front of the phase.
 */
FN void attn_prefetch(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                      LOCAL const struct gpu_phase *ph, uint32_t from) {
    uint32_t begin = first_seen(c, ph), rows = SH(step).n_visible - begin - 1;
    if (!attends_one(c, p) || rows >= SHORT_CONTEXT || c->block >= SH(plan).n_heads) return;
    uint64_t first = row_index(c, &p->kv, ph->layer, c->block / SH(plan).group, begin);
    GLOBAL const uint8_t *k = c->k + p->kv.k + first * p->kv.pitch_k;
    GLOBAL const uint8_t *v = c->k + p->kv.v + first * p->kv.pitch_v;
    NO_UNROLL
    for (uint32_t i = GPU_LINE * (c->thread - from); i < rows * p->kv.pitch_k;
         i += GPU_LINE * (c->n_threads - from)) {
        prefetch(k + i);
        prefetch(v + i); /* f16, as the keys */
    }
}

FN void attn_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                   LOCAL const struct gpu_phase *ph, int fill, struct gpu_part *part) {
    uint32_t seen_end = SH(step).n_visible, group = SH(plan).group;
    uint32_t hidden = first_seen(c, ph);
    int one = attends_one(c, p);
    if (one && seen_end - hidden <= SHORT_CONTEXT) {
        struct Unit u;
        u.n = 1;
        NO_UNROLL
        for (u.head = c->block; u.head < SH(plan).n_heads; u.head += c->n_blocks) {
            u.kv_head = group == 1 ? u.head : u.head / group;
            attend_one(c, p, walked, ph, u, hidden, seen_end, 0, 1, 1, fill, &part->largest);
            fill = 0;
            if (u.head + c->n_blocks < SH(plan).n_heads) sync(); /* the parts have been joined */
        }
        if (fill) stream_fill_up(c); /* without a head */
        return;
    }
    if (fill) stream_fill_up(c);
    struct Seen seen = seen_slots(p, &SH(step), ph->window);
    struct Piece piece;
    uint32_t done = 0, cached = seen.n + seen.n2 - 1, elements = cached * SH(plan).head_dim;
    int single = cached < SHORT_CONTEXT || (one && elements <= SINGLE_HEADS / SH(plan).n_heads);
    NO_UNROLL
    while (piece_next(c, cached, single ? 1 : group, &done, &piece)) {
        if (one && piece.u.n == 1)
            attend_one(c, p, walked, ph, piece.u, hidden + piece.begin,
                       hidden + piece.end + (piece.split + 1 == piece.splits ? 1 : 0), piece.split,
                       piece.splits, 0, 0, &part->largest);
        else
            attend_many(c, p, walked, ph, &seen, piece.u, piece.begin, piece.end, piece.split,
                        piece.splits, &part->largest);
        sync(); /* the parts have been joined */
    }
}

/** GPU_ROPE, unfused: rotates q in place and appends k and v. */
FN void rope_part(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                  LOCAL const struct gpu_phase *ph) {
    uint32_t n = SH(plan).head_dim, row = SH(at_x) + c->warp * 4 * round_up_u(n, PER_LANE);
    uint32_t heads = SH(plan).n_heads, kv_heads = SH(plan).n_kv_heads;
    NO_UNROLL
    for (uint32_t i = c->block * c->n_warps + c->warp; i < heads + 2 * kv_heads;
         i += c->n_blocks * c->n_warps) {
        int query = i < heads, is_value = i >= heads + kv_heads;
        uint32_t kv_head = query ? 0 : i - heads - (is_value ? kv_heads : 0);
        prepare_head(c, i, is_value ? GPU_NONE : ph->head_norm[query ? 0 : 1], !is_value, row);
        lane_sync();
        for (uint32_t d = c->lane; query && d < n; d += GPU_LANES)
            G(float, SH(plan).qkv + 4 * ((uint64_t)i * n + d)) = L(float, row + 4 * d);
        if (!query)
            put_row(c, &p->kv, is_value, row_index(c, &p->kv, ph->layer, kv_head, SH(step).slot),
                    row, 1);
        lane_sync();
    }
}

#endif
