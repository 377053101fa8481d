/**
 * Attention of one query head over keys and values of 16 bits, the usual case. It is a chain of
 * dependent steps that few of the device's warps run, once a layer, so what counts is its length: all
 * that comes from memory is asked for at the beginning, each warp prepares the query for itself, in
 * registers, and the new row is one of the rows of the warp that makes it.
 */
#ifndef PDVM_KERNELS_ATTN_ONE_H
#define PDVM_KERNELS_ATTN_ONE_H

#include "attn_join.h"

#define ROW_SETS 4 /* sets of rows that a warp asks for at once */

/** What a lane holds of ROW_SETS sets of cached rows: eight elements of a row in each. */
struct Rows {
    u32x4 k[ROW_SETS], v[ROW_SETS];
};

/** The cached rows of a warp: slots [begin, end). A row is held by `width` lanes; a set is `places` rows. */
struct Strip {
    uint64_t k, v; /* K: the lane's elements of slot 0 */
    uint32_t begin, end;
    uint32_t width, places, place;
    uint32_t first; /* the lane's first element */
};

/** Whether attend_one can do it: what is seen has to be one range of slots that ends with the new one. */
FN int attends_one(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    uint32_t n = SH(plan).head_dim;
    return p->kv.type_k == GPU_KV_F16 && p->kv.type_v == GPU_KV_F16 && n <= 128 &&
           n % PER_LANE == 0 && c->n_warps > 1 && SH(step).n_dropped == 0 &&
           SH(step).slot + 1 == SH(step).n_visible;
}

/**
 * The rows from `at` on, which may lie up to two before the strip: a lane's elements of keys (from s->k
 * on) or values. What lies outside of the strip is not used.
 */
FN void load_rows(const struct Ctx *c, const struct Strip *s, uint64_t from, uint32_t pitch,
                  uint32_t at, u32x4 *rows) {
    UNROLL
    for (uint32_t u = 0; u < ROW_SETS; u++) {
        int32_t i = (int32_t)(at + u * s->places + s->place);
        uint32_t slot = min_u(i < (int32_t)s->begin ? s->begin : (uint32_t)i, s->end - 1);
        rows[u] = K(u32x4, from + (uint64_t)slot * pitch);
    }
}

FN void unpack_f16(u32x4 raw, float out[PER_LANE]) {
    struct Raw r;
    r.a = raw;
    r.b = raw;
    unpack(&r, GPU_KV_F16, out);
}

FN uint32_t pack2_f16(float a, float b) {
    return float_to_f16(b) << 16 | float_to_f16(a);
}

FN u32x4 pack_f16(const float v[PER_LANE]) {
    return MAKE_X4(pack2_f16(v[0], v[1]), pack2_f16(v[2], v[3]), pack2_f16(v[4], v[5]),
                   pack2_f16(v[6], v[7]));
}

/** The lane's elements of a head, and the rotation: pairs of cos and sin. */
struct Head {
    u32x4 own[2], other[2]; /* `other`: what they are turned with */
    u32x4 turn[4];
};

FN void load_head(const struct Ctx *c, uint64_t in, uint32_t first, struct Head *h) {
    uint32_t pairs = SH(plan).head_dim / 2;
    UNROLL
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t e = first + 4 * k, pair = e < pairs ? e : e - pairs;
        h->own[k] = G(u32x4, in + 4 * e);
        h->other[k] = G(u32x4, in + 4 * (e < pairs ? e + pairs : pair));
        h->turn[2 * k] = G(u32x4, SH(plan).rope + 8 * pair);
        h->turn[2 * k + 1] = G(u32x4, SH(plan).rope + 8 * pair + 16);
    }
}

FN u32x4 norm4(u32x4 v, float scale, u32x4 norm) {
    return MAKE_X4(float_bits(bits_float(v.x) * scale * bits_float(norm.x)),
                   float_bits(bits_float(v.y) * scale * bits_float(norm.y)),
                   float_bits(bits_float(v.z) * scale * bits_float(norm.z)),
                   float_bits(bits_float(v.w) * scale * bits_float(norm.w)));
}

FN void norm_head(const struct Ctx *c, uint64_t norm, float scale, uint32_t first, struct Head *h) {
    uint32_t pairs = SH(plan).head_dim / 2;
    UNROLL
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t e = first + 4 * k;
        h->own[k] = norm4(h->own[k], scale, W(u32x4, norm + 4 * e));
        h->other[k] =
            norm4(h->other[k], scale, W(u32x4, norm + 4 * (e < pairs ? e + pairs : e - pairs)));
    }
}

FN void spread8(const u32x4 *v, float out[PER_LANE]) {
    UNROLL
    for (uint32_t k = 0; k < 2; k++) {
        out[4 * k] = bits_float(v[k].x), out[4 * k + 1] = bits_float(v[k].y);
        out[4 * k + 2] = bits_float(v[k].z), out[4 * k + 3] = bits_float(v[k].w);
    }
}

/** RoPE of the lane's elements. */
FN void turn_own(const struct Ctx *c, const struct Head *h, uint32_t first, float out[PER_LANE]) {
    uint32_t pairs = SH(plan).head_dim / 2;
    float own[PER_LANE], other[PER_LANE], turn[2 * PER_LANE];
    spread8(h->own, own);
    spread8(h->other, other);
    spread8(h->turn, turn);
    spread8(h->turn + 2, turn + PER_LANE);
    UNROLL
    for (uint32_t k = 0; k < PER_LANE; k++) {
        float with = other[k] * turn[2 * k + 1];
        out[k] = own[k] * turn[2 * k] + (first + (k & 4u) < pairs ? -with : with);
    }
}

/** The online softmax of a strip: the largest score is the warp's, a sum is of a lane's own rows. */
struct Softmax {
    float max, sum, acc[PER_LANE];
};

/**
 * ROW_SETS sets of rows; those that come behind them are asked for as soon as there is room, if there are
 * any. The sums over a row's lanes are taken so that each lane ends up with one row's score: of set
 * 2 h + l, h and l being the two highest bits of its place in the row.
 */
FN void attend_rows(const struct Ctx *c, LOCAL const struct gpu_kv *kv, const struct Strip *s,
                    struct Rows *r, const float q[PER_LANE], uint32_t at, uint32_t new_row,
                    int more, struct Softmax *m) {
    uint32_t behind = at + ROW_SETS * s->places;
    uint32_t wide = s->width / 2, quarter = s->width / 4;
    int high = (c->lane & wide) != 0, low = (c->lane & quarter) != 0;
    float dot[ROW_SETS];
    UNROLL
    for (uint32_t u = 0; u < ROW_SETS; u++) {
        float key[PER_LANE];
        unpack_f16(r->k[u], key);
        dot[u] = q[0] * key[0];
        UNROLL
        for (uint32_t i = 1; i < PER_LANE; i++) dot[u] = fma_f(q[i], key[i], dot[u]);
    }
    if (more) load_rows(c, s, s->k, kv->pitch_k, behind, r->k);
    float a = (high ? dot[2] : dot[0]) + lane_xor_f(high ? dot[0] : dot[2], wide);
    float b = (high ? dot[3] : dot[1]) + lane_xor_f(high ? dot[1] : dot[3], wide);
    float score = (low ? b : a) + lane_xor_f(low ? a : b, quarter);
    NO_UNROLL
    for (uint32_t bit = quarter / 2; bit > 0; bit /= 2) score += lane_xor_f(score, bit);
    uint32_t i = at + ((high ? 2u : 0u) + (low ? 1u : 0u)) * s->places + s->place;
    int valid = i - s->begin < s->end - s->begin || i == new_row;
    score = valid ? score * score_scale(c) : MINUS_INFINITY;
    float max = larger(m->max, lane_max_f(score)), weight = weight_of(score, max);
    float shrink = weight_of(m->max, max);
    m->max = max;
    m->sum = fma_f(m->sum, shrink, weight);
    UNROLL
    for (uint32_t k = 0; k < PER_LANE; k++) m->acc[k] *= shrink;
    UNROLL
    for (uint32_t u = 0; u < ROW_SETS; u++) {
        uint32_t from = s->place * s->width + u * quarter;
        float w = bits_float(lane_get_u(float_bits(weight), from)), value[PER_LANE];
        unpack_f16(r->v[u], value);
        UNROLL
        for (uint32_t k = 0; k < PER_LANE; k++) m->acc[k] = fma_f(w, value[k], m->acc[k]);
    }
    if (more) load_rows(c, s, s->v, kv->pitch_v, behind, r->v);
}

/** Part `part` of the result: the places' sums of `m` together. */
FN void put_part(const struct Ctx *c, const struct Strip *s, int active, const struct Parts *parts,
                 uint32_t part, struct Softmax *m) {
    uint32_t row = (uint32_t)parts->rows + part * parts->rows_pitch + 4 * s->first;
    NO_UNROLL
    for (uint32_t bit = GPU_LANES / 2; bit >= s->width; bit /= 2) {
        UNROLL
        for (uint32_t k = 0; k < PER_LANE; k++) m->acc[k] += lane_xor_f(m->acc[k], bit);
    }
    if (active && s->place == 0) {
        L(u32x4, row) = MAKE_X4(float_bits(m->acc[0]), float_bits(m->acc[1]), float_bits(m->acc[2]),
                                float_bits(m->acc[3]));
        L(u32x4, row + 16) = MAKE_X4(float_bits(m->acc[4]), float_bits(m->acc[5]),
                                     float_bits(m->acc[6]), float_bits(m->acc[7]));
    }
    NO_UNROLL
    for (uint32_t bit = GPU_LANES / 2; bit >= s->width / 4; bit /= 2)
        m->sum += lane_xor_f(m->sum, bit);
    if (c->lane == 0)
        L(u32x2, (uint32_t)parts->sums + part * parts->sums_pitch) =
            MAKE_X2(float_bits(m->max), float_bits(m->sum));
}

/**
 * A query head against the slots [begin, end), of which the last is the new row's in the last split.
 * Warps take equal strips, whole numbers of what they ask for at once. The last of them has the new
 * row, as the second of two that come before its others: lanes of place 0 then prepare the query, the
 * others the key. `whole`: there is one split. `fill`: the ring is filled up behind what is loaded.
 */
FN void attend_one(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                   LOCAL const struct gpu_phase *ph, struct Unit u, uint32_t begin, uint32_t end,
                   uint32_t split, uint32_t splits, const int whole, int fill, uint32_t *largest) {
    LOCAL const struct gpu_kv *kv = &p->kv;
    const int last = whole || split + 1 == splits, prepared = (p->flags & GPU_PREPARED) != 0;
    const uint32_t n = SH(plan).head_dim;
    struct Strip s;
    s.width = n > 64 ? 16 : n > 32 ? 8 : 4;
    s.places = GPU_LANES / s.width;
    s.place = c->lane / s.width;
    s.first = c->lane % s.width * PER_LANE;
    const int active = s.first < n;
    if (!active) s.first = 0;
    if (last) end--;
    const uint32_t batch = ROW_SETS * s.places, total = end - begin + (last ? 2 : 0);
    const uint32_t each = ((total + c->n_warps - 1) / c->n_warps + batch - 1) & ~(batch - 1);
    const uint32_t n_parts = count_bits(lane_ballot(c->lane * each < total));
    const struct Parts parts = near_parts(c, u, 0, SH(at_x), n_parts);
    const int fresh = last && c->warp + 1 == n_parts;
    const int makes = fresh && s.place > 0 && !prepared; /* lanes that prepare the key */
    const uint64_t base = row_index(c, kv, ph->layer, u.kv_head, 0);
    s.k = kv->k + base * kv->pitch_k + 2 * s.first;
    s.v = kv->v + base * kv->pitch_v + 2 * s.first;
    u32x4 new_k = MAKE_X4(0, 0, 0, 0), new_v = new_k;
    struct Rows rows;
    s.begin = min_u(begin + c->warp * each, end);
    s.end = min_u(s.begin + each, end);
    uint32_t at = s.begin - (fresh ? 2 : 0), new_row = fresh ? s.begin - 1 : s.begin;
    UNROLL
    for (uint32_t k = 0; k < ROW_SETS; k++) rows.k[k] = rows.v[k] = new_k;
    /* The query, and the new row. */
    struct Head h;
    const uint64_t qkv = SH(plan).qkv;
    const uint32_t key = SH(plan).n_heads + u.kv_head;
    u32x4 value[2];
    value[0] = value[1] = new_k;
    load_head(c, qkv + 4 * (uint64_t)((makes ? key : u.head) * n), s.first, &h);
    if (s.begin < s.end) {
        load_rows(c, &s, s.k, kv->pitch_k, at, rows.k);
        load_rows(c, &s, s.v, kv->pitch_v, at, rows.v);
    }
    if (fresh) {
        uint64_t from = qkv + 4 * (uint64_t)((key + SH(plan).n_kv_heads) * n + s.first);
        value[0] = G(u32x4, from);
        value[1] = G(u32x4, from + 16);
    }
    if (fill) stream_fill_up(c);
    if (c->warp < n_parts) {
        int32_t left = (int32_t)(s.end - at);
        if (ph->head_norm[0] != GPU_NONE && !prepared) { /* the key has one, too */
            float scale = head_scale(c, qkv + 4 * (uint64_t)(u.head * n));
            if (fresh) {
                float of_key = head_scale(c, qkv + 4 * (uint64_t)(key * n));
                scale = makes ? of_key : scale;
            }
            norm_head(c, ph->head_norm[makes ? 1 : 0], scale, s.first, &h);
        }
        float q[PER_LANE];
        if (prepared)
            spread8(h.own, q);
        else
            turn_own(c, &h, s.first, q);
        if (fresh) {
            float v[PER_LANE];
            spread8(value, v);
            new_k = pack_f16(q);
            new_v = pack_f16(v);
            if (prepared) new_k = K(u32x4, s.k + (uint64_t)SH(step).slot * kv->pitch_k);
            UNROLL
            for (uint32_t k = 0; k < PER_LANE; k++)
                q[k] = bits_float(lane_get_u(float_bits(q[k]), c->lane & (s.width - 1)));
            if (s.place == 1) {
                rows.k[0] = new_k;
                rows.v[0] = new_v;
            }
        }
        UNROLL
        for (uint32_t k = 0; k < PER_LANE; k++) q[k] = active ? q[k] : 0.0f;
        take_time(c, p, walked, 1);
        struct Softmax m;
        m.max = MINUS_INFINITY;
        m.sum = 0.0f;
        UNROLL
        for (uint32_t k = 0; k < PER_LANE; k++) m.acc[k] = 0.0f;
        NO_UNROLL
        for (; left > 0; left -= (int32_t)batch, at += batch)
            attend_rows(c, kv, &s, &rows, q, at, new_row, left > (int32_t)batch, &m);
        put_part(c, &s, active, &parts, c->warp, &m);
    }
    sync();
    take_time(c, p, walked, 2);
    if (c->warp == 0) {
        if (whole)
            put_head(c, u.head, &parts, 0, largest);
        else
            join_head(c, u, 0, &parts, split, splits, largest);
    }
    if (makes && active && s.place == 1 && u.head == u.kv_head * SH(plan).group) {
        K(u32x4, s.k + (uint64_t)SH(step).slot * kv->pitch_k) = new_k;
        K(u32x4, s.v + (uint64_t)SH(step).slot * kv->pitch_v) = new_v;
    }
}

#endif
