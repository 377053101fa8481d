/**
 * Attention of several query heads that share a kv head, of all types of keys and values, and with the
 * rows in front of a rolling window: queries and the new row are prepared in group memory, then warps
 * take strips of the rows, and up to GPU_HEADS_AT_ONCE heads each, so a key is read once for them.
 */
#ifndef PDVM_KERNELS_ATTN_MANY_H
#define PDVM_KERNELS_ATTN_MANY_H

#include "attn_join.h"

/** Sum over the lanes of a row; `width` is a power of two. */
FN float row_sum(float v, uint32_t width) {
    if (width > 16) v += lane_xor_f(v, 16);
    if (width > 8) v += lane_xor_f(v, 8);
    if (width > 4) v += lane_xor_f(v, 4);
    if (width > 2) v += lane_xor_f(v, 2);
    if (width > 1) v += lane_xor_f(v, 1);
    return v;
}

/** A warp's work: `heads` queries against the cached rows [begin, end) of what is seen. */
struct Job {
    uint64_t base;      /* row_index of slot 0 */
    uint32_t q, q_sink; /* L: rows of floats, `stride` bytes apart */
    uint32_t stride;
    uint32_t begin, end;
    uint32_t fresh;   /* place of the new row among what is seen: it is left out */
    uint32_t out;     /* L: weighted sums of the values, `stride` bytes apart */
    uint32_t out_sum; /* L: largest score and sum of weights, 8 bytes apart */
};

/*
 * A row is held by `width` lanes, eight elements each, so a warp reads 32 / width rows at a time,
 * and DEPTH times that before it uses the first. Each row place has a softmax of its own; they are
 * joined at the end.
 */
FN void attend(const struct Ctx *c, LOCAL const struct gpu_launch *p, const struct Seen *seen,
               const struct Job *job, uint32_t type_k, uint32_t type_v, const uint32_t heads,
               const uint32_t depth) {
    LOCAL const struct gpu_kv *kv = &p->kv;
    uint32_t n = SH(plan).head_dim, lanes = (n + PER_LANE - 1) / PER_LANE, width = 1;
    while (width < lanes) width *= 2;
    uint32_t places = GPU_LANES / width, place = c->lane / width;
    uint32_t first = c->lane % width * PER_LANE;
    int active = first < n;
    float scale = score_scale(c);
    float max[GPU_HEADS_AT_ONCE], sum[GPU_HEADS_AT_ONCE], acc[GPU_HEADS_AT_ONCE][PER_LANE];
    if (!active) first = 0;
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        max[h] = MINUS_INFINITY;
        sum[h] = 0.0f;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] = 0.0f;
    }
    NO_UNROLL
    for (uint32_t at = job->begin; at < job->end; at += places * depth) {
        struct Raw k[4], v[4];
        float k_scale[4], v_scale[4];
        uint32_t slot[4];
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            uint32_t i = at + u * places + place;
            i = min_u(i, job->end - 1);
            slot[u] = seen_slot(seen, i + (i >= job->fresh ? 1u : 0u));
            uint64_t row = job->base + slot[u];
            k[u] = load_raw(c, kv->k + row * kv->pitch_k, type_k, first);
            v[u] = load_raw(c, kv->v + row * kv->pitch_v, type_v, first);
            k_scale[u] = type_k == GPU_KV_INT8 ? K(float, kv->k_scales + 4 * row) * scale : scale;
            v_scale[u] = type_v == GPU_KV_INT8 ? K(float, kv->v_scales + 4 * row) : 1.0f;
        }
        float score[GPU_HEADS_AT_ONCE][4];
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            float key[PER_LANE];
            unpack(&k[u], type_k, key);
            int sink = SH(step).n_dropped && slot[u] < p->n_sink;
            uint32_t q = (sink ? job->q_sink : job->q) + 4 * first;
            int valid = at + u * places + place < job->end;
            UNROLL
            for (uint32_t h = 0; h < heads; h++) {
                u32x4 a = L(u32x4, q + h * job->stride), b = L(u32x4, q + h * job->stride + 16);
                float dot = bits_float(a.x) * key[0];
                dot = fma_f(bits_float(a.y), key[1], dot);
                dot = fma_f(bits_float(a.z), key[2], dot);
                dot = fma_f(bits_float(a.w), key[3], dot);
                dot = fma_f(bits_float(b.x), key[4], dot);
                dot = fma_f(bits_float(b.y), key[5], dot);
                dot = fma_f(bits_float(b.z), key[6], dot);
                dot = fma_f(bits_float(b.w), key[7], dot);
                dot = row_sum(active ? dot : 0.0f, width) * k_scale[u];
                score[h][u] = valid ? dot : MINUS_INFINITY;
            }
        }
        UNROLL
        for (uint32_t h = 0; h < heads; h++) {
            float m = max[h];
            UNROLL
            for (uint32_t u = 0; u < depth; u++) m = larger(m, score[h][u]);
            float shrink = weight_of(max[h], m);
            max[h] = m;
            sum[h] *= shrink;
            UNROLL
            for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] *= shrink;
        }
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            float value[PER_LANE];
            unpack(&v[u], type_v, value);
            UNROLL
            for (uint32_t h = 0; h < heads; h++) {
                float w = weight_of(score[h][u], max[h]);
                sum[h] += w;
                w *= v_scale[u];
                UNROLL
                for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] = fma_f(w, value[i], acc[h][i]);
            }
        }
    }
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        float all = max[h];
        for (uint32_t m = 16; m >= width; m /= 2) all = larger(all, lane_xor_f(all, m));
        float mine = weight_of(max[h], all);
        max[h] = all;
        sum[h] *= mine;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] *= mine;
        NO_UNROLL
        for (uint32_t m = 16; m >= width; m /= 2) {
            sum[h] += lane_xor_f(sum[h], m);
            UNROLL
            for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] += lane_xor_f(acc[h][i], m);
        }
        if (place != 0 || !active) continue;
        if (c->lane == 0)
            L(u32x2, job->out_sum + 8 * h) = MAKE_X2(float_bits(max[h]), float_bits(sum[h]));
        uint32_t out = job->out + h * job->stride + 4 * first;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) L(float, out + 4 * i) = acc[h][i];
    }
}

/* The usual types have loops of their own. */
FN void attend_heads(const struct Ctx *c, LOCAL const struct gpu_launch *p, const struct Seen *seen,
                     const struct Job *job, const uint32_t heads, const uint32_t depth) {
    uint32_t k = p->kv.type_k, v = p->kv.type_v;
    if (k == GPU_KV_F16 && v == GPU_KV_F16)
        attend(c, p, seen, job, GPU_KV_F16, GPU_KV_F16, heads, depth);
    else if (k == GPU_KV_INT8 && v == GPU_KV_INT8)
        attend(c, p, seen, job, GPU_KV_INT8, GPU_KV_INT8, heads, depth);
    else
        attend(c, p, seen, job, k, v, heads, 1); /* rare: no more registers than the others need */
}

/** A warp's part of the result for a head that sees the new row alone. */
FN void attend_new(const struct Ctx *c, uint32_t q, uint32_t key, uint32_t value,
                   const struct Parts *parts, uint32_t part) {
    uint32_t n = SH(plan).head_dim, out = (uint32_t)parts->rows + part * parts->rows_pitch;
    float dot = 0.0f;
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES)
        dot = fma_f(L(float, q + 4 * i), L(float, key + 4 * i), dot);
    dot = lane_sum(dot) * score_scale(c);
    if (c->lane == 0)
        L(u32x2, (uint32_t)parts->sums + part * parts->sums_pitch) =
            MAKE_X2(float_bits(dot), float_bits(1.0f));
    NO_UNROLL
    for (uint32_t i = c->lane; i < n; i += GPU_LANES)
        L(float, out + 4 * i) = L(float, value + 4 * i);
}

FN void attend_many(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                    LOCAL const struct gpu_phase *ph, const struct Seen *seen, struct Unit u,
                    uint32_t begin, uint32_t end, uint32_t split, uint32_t splits,
                    uint32_t *largest) {
    uint32_t n = SH(plan).head_dim, row = 4 * round_up_u(n, PER_LANE);
    uint64_t slot = row_index(c, &p->kv, ph->layer, u.kv_head, SH(step).slot);
    int last = split + 1 == splits, prepared = (p->flags & GPU_PREPARED) != 0;
    uint32_t q = SH(at_x), q_sink = q + u.n * row, key = q_sink + u.n * row, value = key + row;
    /* Queries and the new row's key and value, by whole warps. */
    NO_UNROLL
    for (uint32_t j = c->warp; j < u.n + (last ? 2 : 0); j += c->n_warps) {
        int query = j < u.n, is_value = j == u.n + 1;
        uint32_t out = query ? q + j * row : is_value ? value : key;
        if (!query && prepared) {
            fetch_row(c, &p->kv, is_value, slot, out);
            continue;
        }
        uint32_t head = query      ? u.head + j
                        : is_value ? SH(plan).n_heads + SH(plan).n_kv_heads + u.kv_head
                                   : SH(plan).n_heads + u.kv_head;
        int turned = !prepared && !is_value;
        prepare_head(c, head, turned ? ph->head_norm[query ? 0 : 1] : GPU_NONE, turned, out);
        if (query && SH(step).n_dropped == 0) continue;
        lane_sync();
        if (query) {
            turn_head(c, out, q_sink + j * row);
            continue;
        }
        put_row(c, &p->kv, is_value, slot, out, u.head == u.kv_head * SH(plan).group);
    }
    sync();
    take_time(c, p, walked, 1);
    uint32_t chunks = (u.n + GPU_HEADS_AT_ONCE - 1) / GPU_HEADS_AT_ONCE, rows = end - begin;
    uint32_t strips = min_u(chunks < c->n_warps ? c->n_warps / chunks : 1, GPU_LANES - 1);
    uint32_t each = 8;
    if (rows <= 8 * strips)
        strips = (rows + 7) / 8;
    else
        each = (rows + strips - 1) / strips;
    struct Parts first = near_parts(c, u, 0, value + row, strips + (last ? 1 : 0));
    for (uint32_t i = c->warp; i < chunks * strips; i += c->n_warps) {
        uint32_t strip = chunks == 1 ? i : i / chunks;
        uint32_t g = (i - strip * chunks) * GPU_HEADS_AT_ONCE;
        uint32_t heads = min_u(u.n - g, GPU_HEADS_AT_ONCE);
        struct Job job;
        job.base = row_index(c, &p->kv, ph->layer, u.kv_head, 0);
        job.q = q + g * row;
        job.q_sink = q_sink + g * row;
        job.stride = row;
        job.begin = min_u(begin + each * strip, end);
        job.end = min_u(job.begin + each, end);
        job.fresh = seen_index(seen, SH(step).slot);
        job.out = (uint32_t)first.rows + (strip * u.n + g) * row;
        job.out_sum = (uint32_t)first.sums + 8 * (strip * u.n + g);
        if (heads == 4) {
            attend_heads(c, p, seen, &job, 4, 1);
            continue;
        }
        if (heads >= 2) {
            attend_heads(c, p, seen, &job, 2, 2);
            job.q += 2 * row;
            job.q_sink += 2 * row;
            job.out += 2 * row;
            job.out_sum += 16;
        }
        if (heads & 1) attend_heads(c, p, seen, &job, 1, 4);
    }
    /* The new row, by the warps that have least to do. */
    for (uint32_t g = c->n_warps - 1 - c->warp; last && g < u.n; g += c->n_warps) {
        struct Parts parts = near_parts(c, u, g, value + row, strips + 1);
        attend_new(c, q + g * row, key, value, &parts, strips);
    }
    sync();
    take_time(c, p, walked, 2);
    NO_UNROLL
    for (uint32_t g = c->warp; g < u.n; g += c->n_warps) {
        struct Parts parts = near_parts(c, u, g, value + row, strips + (last ? 1 : 0));
        join_head(c, u, g, &parts, split, splits, largest);
    }
}

#endif
