/**
 * Phase ATTN: norms of heads, RoPE (Su et al. 2021), the new key and value into the cache, and
 * attention with online softmax (Milakov and Gimelshein 2018).
 *
 * Groups take items: (kv head, split of the visible positions). The one whose split has the new
 * row appends it, so nobody waits for it. A group's warps take strips of the split (and up to
 * GPU_HEADS_AT_ONCE query heads each, so a key is read once for them); strips, and then splits, are
 * joined in their order, whoever comes last.
 */
#ifndef PDVM_KERNELS_ATTN_H
#define PDVM_KERNELS_ATTN_H

#include "act.h"

#define PER_LANE 8 /* elements of a row that a lane holds */
#define MINUS_INFINITY bits_float(0xff800000u)

/* ---- the cache --------------------------------------------------------------------------- */

FN uint64_t row_index(const struct Ctx *c, const struct gpu_kv *kv, uint32_t layer, uint32_t head,
                      uint32_t slot) {
    return ((uint64_t)layer * SH(plan).n_kv_heads + head) * kv->capacity + slot;
}

/** A warp stores row[head_dim] of floats, in group memory, as a key or a value. */
FN void store_row(const struct Ctx *c, const struct gpu_kv *kv, int value, uint64_t index,
                  uint32_t row) {
    uint32_t type = value ? kv->type_v : kv->type_k, n = SH(plan).head_dim;
    uint64_t to = value ? kv->v + index * kv->pitch_v : kv->k + index * kv->pitch_k;
    float inverse = 0.0f;
    if (type == GPU_KV_INT8) {
        uint32_t largest = 0;
        for (uint32_t i = c->lane; i < n; i += GPU_LANES)
            largest = max_u(largest, L(uint32_t, row + 4 * i) & 0x7fffffffu);
        float amax = bits_float(lane_max_u(largest));
        if (c->lane == 0)
            K(float, (value ? kv->v_scales : kv->k_scales) + 4 * index) = amax / 127.0f;
        inverse = amax >= 1e-30f && float_bits(amax) < 0x7f800000u ? 127.0f / amax : 0.0f;
    }
    for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
        float v = L(float, row + 4 * i);
        if (type == GPU_KV_F32) K(float, to + 4 * i) = v;
        if (type == GPU_KV_F16) K(uint16_t, to + 2 * i) = (uint16_t)float_to_f16(v);
        if (type == GPU_KV_INT8)
            K(int8_t, to + i) = inverse > 0.0f ? (int8_t)rint_f(v * inverse) : (int8_t)0;
    }
}

/** Eight elements of a row, raw: 8, 16 or 32 bytes. */
struct Raw {
    u32x4 a, b;
};

FN struct Raw load_raw(const struct Ctx *c, uint64_t row, uint32_t type, uint32_t first) {
    struct Raw r;
    r.b = MAKE_X4(0, 0, 0, 0);
    if (type == GPU_KV_F16) {
        r.a = K(u32x4, row + 2 * first);
    } else if (type == GPU_KV_INT8) {
        u32x2 v = K(u32x2, row + first);
        r.a = MAKE_X4(v.x, v.y, 0, 0);
    } else {
        r.a = K(u32x4, row + 4 * first);
        r.b = K(u32x4, row + 4 * first + 16);
    }
    return r;
}

FN float signed_byte(uint32_t v, uint32_t i) {
    return (float)(int8_t)(v >> (8 * i) & 0xffu);
}

FN void unpack(const struct Raw *r, uint32_t type, float out[PER_LANE]) {
    uint32_t w[8];
    w[0] = r->a.x, w[1] = r->a.y, w[2] = r->a.z, w[3] = r->a.w;
    w[4] = r->b.x, w[5] = r->b.y, w[6] = r->b.z, w[7] = r->b.w;
    UNROLL
    for (uint32_t i = 0; i < PER_LANE; i++) {
        if (type == GPU_KV_F16) out[i] = f16_to_float(w[i / 2] >> (16 * (i & 1)) & 0xffffu);
        if (type == GPU_KV_INT8) out[i] = signed_byte(w[i / 4], i & 3);
        if (type == GPU_KV_F32) out[i] = bits_float(w[i]);
    }
}

/* ---- rotation ---------------------------------------------------------------------------- */

/** A warp brings a head into group memory: in + norm + RoPE, zeros up to a multiple of 8. */
FN void prepare_head(const struct Ctx *c, uint64_t in, uint64_t norm, uint32_t out) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    float scale = 1.0f;
    if (norm != GPU_NONE) {
        float squares = 0.0f;
        for (uint32_t i = c->lane; i < n; i += GPU_LANES) {
            float v = G(float, in + 4 * i);
            squares += v * v;
        }
        scale = 1.0f / sqrt_f(lane_sum(squares) / (float)n + SH(plan).rms_norm_eps);
    }
    for (uint32_t i = c->lane; i < pairs; i += GPU_LANES) {
        float a = G(float, in + 4 * i), b = G(float, in + 4 * (i + pairs));
        u32x2 turn = G(u32x2, SH(plan).rope + 8 * i);
        float cos = bits_float(turn.x), sin = bits_float(turn.y);
        if (norm != GPU_NONE) {
            a = a * scale * W(float, norm + 4 * i);
            b = b * scale * W(float, norm + 4 * (i + pairs));
        }
        L(float, out + 4 * i) = a * cos - b * sin;
        L(float, out + 4 * (i + pairs)) = b * cos + a * sin;
    }
    for (uint32_t i = n + c->lane; i < round_up_u(n, PER_LANE); i += GPU_LANES)
        L(float, out + 4 * i) = 0.0f;
}

/** The same without norm and rotation. */
FN void copy_head(const struct Ctx *c, uint64_t in, uint32_t out) {
    uint32_t n = SH(plan).head_dim;
    for (uint32_t i = c->lane; i < round_up_u(n, PER_LANE); i += GPU_LANES)
        L(float, out + 4 * i) = i < n ? G(float, in + 4 * i) : 0.0f;
}

/** Turns a head that is in group memory back by the positions that were dropped. */
FN void turn_head(const struct Ctx *c, uint32_t in, uint32_t out) {
    uint32_t n = SH(plan).head_dim, pairs = n / 2;
    for (uint32_t i = c->lane; i < pairs; i += GPU_LANES) {
        float a = L(float, in + 4 * i), b = L(float, in + 4 * (i + pairs));
        u32x2 turn = G(u32x2, SH(plan).rope + 8 * (pairs + i));
        float cos = bits_float(turn.x), sin = bits_float(turn.y);
        L(float, out + 4 * i) = a * cos - b * sin;
        L(float, out + 4 * (i + pairs)) = b * cos + a * sin;
    }
    for (uint32_t i = n + c->lane; i < round_up_u(n, PER_LANE); i += GPU_LANES)
        L(float, out + 4 * i) = 0.0f;
}

FN uint64_t head_in(const struct Ctx *c, uint32_t head) {
    return SH(plan).qkv + 4 * (uint64_t)head * SH(plan).head_dim;
}

/** A warp appends the new key and value of a kv head; `scratch`: a row in group memory. */
FN void append_row(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                   LOCAL const struct gpu_phase *ph, uint32_t kv_head, uint32_t scratch) {
    uint32_t k = SH(plan).n_heads + kv_head, v = k + SH(plan).n_kv_heads;
    uint64_t index = row_index(c, &p->kv, ph->layer, kv_head, SH(step).slot);
    prepare_head(c, head_in(c, k), ph->head_norm[1], scratch);
    lane_sync();
    store_row(c, &p->kv, 0, index, scratch);
    lane_sync();
    copy_head(c, head_in(c, v), scratch);
    lane_sync();
    store_row(c, &p->kv, 1, index, scratch);
}

/* ---- what a token sees ------------------------------------------------------------------- */

/** Slots in ascending order, one range or two, as in the CPU's attention. */
struct Seen {
    uint32_t begin, n;   /* the first range */
    uint32_t begin2, n2; /* n2 is 0 if there is no second */
};

FN struct Seen seen_slots(LOCAL const struct gpu_launch *p, LOCAL const struct Step *st,
                          uint32_t window) {
    struct Seen s;
    uint32_t hidden = window > 0 && st->n_visible > window ? st->n_visible - window : 0;
    s.begin = hidden;
    s.n = st->n_visible - hidden;
    s.begin2 = 0;
    s.n2 = 0;
    if (hidden <= p->n_sink || st->n_dropped == 0) return s;
    uint32_t end = st->slot + 1; /* of the window in the ring */
    if (end - p->n_sink >= window) {
        s.begin = end - window;
        s.n = window;
        return s;
    }
    s.begin = p->n_sink;
    s.n = end - p->n_sink;
    s.n2 = window - s.n;
    s.begin2 = st->n_visible - s.n2;
    return s;
}

FN uint32_t seen_slot(const struct Seen *s, uint32_t i) {
    return i < s->n ? s->begin + i : s->begin2 + i - s->n;
}

/** Where a slot is in that order. */
FN uint32_t seen_index(const struct Seen *s, uint32_t slot) {
    if (slot >= s->begin && slot < s->begin + s->n) return slot - s->begin;
    return s->n + slot - s->begin2;
}

/** How many splits cost least: rounds of the groups times rows of a split and some for joining. */
FN uint32_t split_count(const struct Ctx *c, uint32_t total) {
    uint32_t best = 0xffffffffu;
    uint32_t most = min_u(SH(plan).max_splits, (total + 127) / 128);
    for (uint32_t s = 1 + c->lane; s <= most; s += GPU_LANES) {
        uint32_t rounds = (SH(plan).n_kv_heads * s + c->n_blocks - 1) / c->n_blocks;
        uint32_t cost = rounds * ((total + s - 1) / s + 64) + (s > 1 ? 96 : 0);
        best = min_u(best, min_u(cost, 0xffffffu) << 8 | s);
    }
    return ~lane_max_u(~best) & 255u;
}

/* ---- attention --------------------------------------------------------------------------- */

/** Sum over the lanes of a row; `width` is a power of two. */
FN float row_sum(float v, uint32_t width) {
    if (width > 16) v += lane_xor_f(v, 16);
    if (width > 8) v += lane_xor_f(v, 8);
    if (width > 4) v += lane_xor_f(v, 4);
    if (width > 2) v += lane_xor_f(v, 2);
    if (width > 1) v += lane_xor_f(v, 1);
    return v;
}

FN float larger(float a, float b) {
    return b > a ? b : a;
}

/** exp(a - b) where a may be minus infinity. */
FN float weight_of(float a, float b) {
    return a == MINUS_INFINITY ? 0.0f : exp_f(a - b);
}

/** A warp's work: `heads` queries against rows [begin, end) of what is seen. */
struct Job {
    uint64_t base;      /* row_index of slot 0 */
    uint32_t q, q_sink; /* L: rows of floats, `stride` bytes apart */
    uint32_t stride;
    uint32_t begin, end;
    uint32_t out; /* L: partial results */
    uint32_t out_stride;
};

/*
 * A row is held by `width` lanes, eight elements each, so a warp reads 32 / width rows at a time,
 * and DEPTH times that before it uses the first. Each row place has a softmax of its own; they are
 * joined at the end.
 */
FN void attend(const struct Ctx *c, LOCAL const struct gpu_launch *p, const struct Seen *seen,
               const struct Job *job, uint32_t type_k, uint32_t type_v, const uint32_t heads,
               const uint32_t depth) {
    const struct gpu_kv *kv = &p->kv;
    uint32_t n = SH(plan).head_dim, lanes = (n + PER_LANE - 1) / PER_LANE, width = 1;
    while (width < lanes) width *= 2;
    uint32_t places = GPU_LANES / width, place = c->lane / width;
    uint32_t first = c->lane % width * PER_LANE;
    int active = first < n;
    float scale = 1.0f / sqrt_f((float)n);
    float max[GPU_HEADS_AT_ONCE], sum[GPU_HEADS_AT_ONCE], acc[GPU_HEADS_AT_ONCE][PER_LANE];
    if (!active) first = 0;
    UNROLL
    for (uint32_t h = 0; h < heads; h++) {
        max[h] = MINUS_INFINITY;
        sum[h] = 0.0f;
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++) acc[h][i] = 0.0f;
    }
    for (uint32_t at = job->begin; at < job->end; at += places * depth) {
        struct Raw k[4], v[4];
        float k_scale[4], v_scale[4];
        uint32_t slot[4];
        UNROLL
        for (uint32_t u = 0; u < depth; u++) {
            uint32_t i = at + u * places + place;
            slot[u] = seen_slot(seen, min_u(i, job->end - 1));
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
        for (uint32_t m = 16; m >= width; m /= 2) {
            float other = lane_xor_f(max[h], m);
            float all = larger(max[h], other);
            float mine = weight_of(max[h], all), theirs = weight_of(other, all);
            max[h] = all;
            sum[h] = sum[h] * mine + lane_xor_f(sum[h], m) * theirs;
            UNROLL
            for (uint32_t i = 0; i < PER_LANE; i++)
                acc[h][i] = acc[h][i] * mine + lane_xor_f(acc[h][i], m) * theirs;
        }
        if (place != 0 || !active) continue;
        uint32_t out = job->out + h * job->out_stride;
        if (c->lane == 0) {
            L(float, out) = max[h];
            L(float, out + 4) = sum[h];
        }
        UNROLL
        for (uint32_t i = 0; i < PER_LANE; i++)
            if (first + i < n) L(float, out + 8 + 4 * (first + i)) = acc[h][i];
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

/** Joins n partial results of one element, `stride` floats apart, in their order. */
struct Joined {
    float max, sum, acc;
};

FN struct Joined join_start(void) {
    struct Joined j;
    j.max = MINUS_INFINITY;
    j.sum = 0.0f;
    j.acc = 0.0f;
    return j;
}

FN void join_add(struct Joined *j, float max, float sum, float acc) {
    float w = weight_of(max, j->max);
    j->sum += sum * w;
    j->acc += acc * w;
}

FN uint64_t part_of(const struct Ctx *c, uint32_t head, uint32_t split) {
    uint64_t i = (uint64_t)head * SH(plan).max_splits + split;
    return SH(plan).attn_part + 4 * i * (SH(plan).head_dim + 2);
}

/** Writes a final element and keeps the largest. */
FN void attn_put(const struct Ctx *c, uint32_t head, uint32_t d, const struct Joined *j,
                 uint32_t *largest) {
    float v = j->acc / j->sum;
    G(float, SH(plan).attn + 4 * ((uint64_t)head * SH(plan).head_dim + d)) = v;
    *largest = max_u(*largest, float_bits(v) & 0x7fffffffu);
}

FN void attn_max_put(const struct Ctx *c, uint32_t kv_head, uint32_t largest) {
    float none = 0.0f;
    group_reduce(c, &none, &largest);
    if (c->thread == 0) G(u32x2, SH(plan).attn_max + 8 * (uint64_t)kv_head) = MAKE_X2(0, largest);
}

/** The last group of a kv head joins its splits. */
FN void join_splits(const struct Ctx *c, uint32_t kv_head, uint32_t splits) {
    uint32_t n = SH(plan).head_dim, group = SH(plan).n_heads / SH(plan).n_kv_heads, largest = 0;
    uint64_t done = SH(plan).attn_done + (uint64_t)GPU_LINE * kv_head;
    sync();
    if (c->thread == 0) SH(found)[0] = grid_add_both(&G(uint32_t, done)) + 1 == splits;
    sync();
    if (!SH(found)[0]) return;
    for (uint32_t e = c->thread; e < group * n; e += c->n_threads) {
        uint32_t head = kv_head * group + e / n, d = e % n;
        struct Joined j = join_start();
        for (uint32_t s = 0; s < splits; s++) j.max = larger(j.max, G(float, part_of(c, head, s)));
        for (uint32_t s = 0; s < splits; s++) {
            uint64_t part = part_of(c, head, s);
            join_add(&j, G(float, part), G(float, part + 4), G(float, part + 8 + 4 * d));
        }
        attn_put(c, head, d, &j, &largest);
    }
    attn_max_put(c, kv_head, largest);
    if (c->thread == 0) G(uint32_t, done) = 0;
}

FN void attn_item(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                  LOCAL const struct gpu_phase *ph, const struct Seen *seen, uint32_t kv_head,
                  uint32_t split, uint32_t splits) {
    uint32_t n = SH(plan).head_dim, group = SH(plan).n_heads / SH(plan).n_kv_heads;
    uint32_t total = seen->n + seen->n2, largest = 0;
    uint32_t begin = (uint32_t)((uint64_t)total * split / splits);
    uint32_t end = (uint32_t)((uint64_t)total * (split + 1) / splits);
    uint32_t row = 4 * round_up_u(n, PER_LANE);
    uint32_t q = SH(at_x), q_sink = q + group * row, parts = q_sink + group * row;
    uint32_t at = seen_index(seen, SH(step).slot);
    int prepared = (p->flags & GPU_PREPARED) != 0;
    /* Queries, and the new row if it is in this split, by whole warps. */
    for (uint32_t g = c->warp; g <= group; g += c->n_warps) {
        if (g == group) {
            if (!prepared && at >= begin && at < end) append_row(c, p, ph, kv_head, parts);
            continue;
        }
        uint64_t in = head_in(c, kv_head * group + g);
        if (prepared)
            copy_head(c, in, q + g * row);
        else
            prepare_head(c, in, ph->head_norm[0], q + g * row);
        if (SH(step).n_dropped == 0) continue;
        lane_sync();
        turn_head(c, q + g * row, q_sink + g * row);
    }
    sync();
    uint32_t chunks = (group + GPU_HEADS_AT_ONCE - 1) / GPU_HEADS_AT_ONCE;
    uint32_t strips = chunks < c->n_warps ? c->n_warps / chunks : 1;
    uint32_t part_bytes = 4 * (n + 2);
    for (uint32_t i = c->warp; i < chunks * strips; i += c->n_warps) {
        uint32_t g = i % chunks * GPU_HEADS_AT_ONCE, strip = i / chunks;
        uint32_t heads = min_u(group - g, GPU_HEADS_AT_ONCE);
        struct Job job;
        job.base = row_index(c, &p->kv, ph->layer, kv_head, 0);
        job.q = q + g * row;
        job.q_sink = q_sink + g * row;
        job.stride = row;
        job.begin = begin + (uint32_t)((uint64_t)(end - begin) * strip / strips);
        job.end = begin + (uint32_t)((uint64_t)(end - begin) * (strip + 1) / strips);
        job.out = parts + (strip * group + g) * part_bytes;
        job.out_stride = part_bytes;
        if (heads == 4) {
            attend_heads(c, p, seen, &job, 4, 1);
            continue;
        }
        if (heads >= 2) {
            attend_heads(c, p, seen, &job, 2, 2);
            job.q += 2 * row;
            job.q_sink += 2 * row;
            job.out += 2 * part_bytes;
        }
        if (heads & 1) attend_heads(c, p, seen, &job, 1, 4);
    }
    sync();
    for (uint32_t e = c->thread; e < group * n; e += c->n_threads) {
        uint32_t g = e / n, d = e % n;
        struct Joined j = join_start();
        for (uint32_t s = 0; s < strips; s++)
            j.max = larger(j.max, L(float, parts + (s * group + g) * part_bytes));
        for (uint32_t s = 0; s < strips; s++) {
            uint32_t part = parts + (s * group + g) * part_bytes;
            join_add(&j, L(float, part), L(float, part + 4), L(float, part + 8 + 4 * d));
        }
        if (splits == 1) {
            attn_put(c, kv_head * group + g, d, &j, &largest);
            continue;
        }
        uint64_t out = part_of(c, kv_head * group + g, split);
        if (d == 0) {
            G(float, out) = j.max;
            G(float, out + 4) = j.sum;
        }
        G(float, out + 8 + 4 * d) = j.acc;
    }
    if (splits == 1)
        attn_max_put(c, kv_head, largest);
    else
        join_splits(c, kv_head, splits);
    sync();
}

FN void attn_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                   LOCAL const struct gpu_phase *ph) {
    struct Seen seen = seen_slots(p, &SH(step), ph->window);
    uint32_t splits = split_count(c, seen.n + seen.n2);
    for (uint32_t i = c->block; i < SH(plan).n_kv_heads * splits; i += c->n_blocks)
        attn_item(c, p, ph, &seen, i / splits, i % splits, splits);
}

/** GPU_ROPE, unfused: rotates q in place and appends k and v. */
FN void rope_part(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                  LOCAL const struct gpu_phase *ph) {
    uint32_t n = SH(plan).head_dim, row = SH(at_x) + c->warp * 4 * round_up_u(n, PER_LANE);
    uint32_t heads = SH(plan).n_heads;
    for (uint32_t i = c->block * c->n_warps + c->warp; i < heads + SH(plan).n_kv_heads;
         i += c->n_blocks * c->n_warps) {
        if (i >= heads) {
            append_row(c, p, ph, i - heads, row);
        } else {
            prepare_head(c, head_in(c, i), ph->head_norm[0], row);
            lane_sync();
            for (uint32_t d = c->lane; d < n; d += GPU_LANES)
                G(float, head_in(c, i) + 4 * d) = L(float, row + 4 * d);
        }
        lane_sync();
    }
}

#endif
