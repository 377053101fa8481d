/* The bodies of a token's phases, as one of several workers runs them. */
#include "backend/cpu/cpu.h"
#include "base/checked.h"

#include <math.h>
#include <string.h>

/* Deals out the tiles of the phase's matrices, counted through all of them one after another
 * (gate and up are counted as pairs). */
static struct pd_share share_tiles(const struct cpu_backend *b, const struct phase *phase,
                                   int worker, int n_workers) {
    size_t i = (size_t)(phase - b->plan->phases);
    const int64_t *split = b->splits + i * ((size_t)n_workers + 1);
    return pd_share_ranges(b->threads, worker, n_workers, split, b->grains[i]);
}

static void product(const struct cpu_backend *b, const struct backend_matrix *m, int64_t tile0,
                    int64_t tile1, const struct cpu_act *act, uint32_t n, float *out,
                    int64_t stride) {
    const struct cpu_matrix *p = m->packed;
    b->kernels->product[p->kind][p->dense](p, tile0, tile1, act, n, out, stride);
}

/* Brings one vector into the form(s) that the phase's matrices multiply. */
static void prepare_one(const struct cpu_backend *b, const struct phase *phase, const float *in,
                        int64_t n, const float *norm, float *normed, struct cpu_act *act) {
    if (norm) {
        b->kernels->rms_norm(in, norm, n, b->plan->rms_norm_eps, normed);
        in = normed;
    }
    act->x = (float *)(uintptr_t)in; /* all vectors are zero up to a multiple of 64 */
    bool integer = false;
    for (int i = 0; i < 3; i++)
        if (phase->w[i]) integer |= cpu_kind_is_integer(phase->w[i]->packed->kind);
    if (!integer) return;
    b->kernels->quantise(in, n, act);
}

/*
 * Prepares `count` vectors, `stride` floats apart. For one token every worker does it for itself:
 * that is cheaper than a barrier. Several tokens are shared out.
 */
static const struct cpu_act *prepare(struct cpu_backend *b, const struct phase *phase,
                                     const float *in, size_t stride, int64_t n, uint32_t count,
                                     int worker, int n_workers) {
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    if (count == 1) {
        struct cpu_worker *w = &b->workers[worker];
        prepare_one(b, phase, in, n, phase->norm, w->normed, &w->act);
        return &w->act;
    }
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, count, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (size_t t = (size_t)begin; t < (size_t)end; t++)
            prepare_one(b, phase, in + t * stride, n, phase->norm, b->normed + t * width,
                        &b->acts[t]);
    pd_threads_barrier(b->threads);
    return b->acts;
}

static void embed(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                  int worker, int n_workers) {
    size_t stride = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    for (uint32_t t = (uint32_t)worker; t < batch->n_tokens; t += (uint32_t)n_workers)
        mdcsr_decode_row(phase->w[0]->lookup, batch->tokens[t], b->x + t * stride);
}

static void norm_step(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                      int worker, int n_workers) {
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, batch->n_tokens, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (size_t t = (size_t)begin; t < (size_t)end; t++)
            prepare_one(b, phase, b->x + t * width, b->plan->hidden_size, phase->norm,
                        b->normed + t * width, &b->acts[t]);
}

static void add_bias(const float *bias, int64_t n, uint32_t n_tokens, float *out, int64_t stride) {
    for (uint32_t t = 0; t < n_tokens; t++)
        for (int64_t r = 0; r < n; r++) out[t * stride + r] += bias[r];
}

/* Tiles [begin, end) of q, k and v, counted through all three. */
static void qkv_tiles(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                      const struct cpu_act *act, int64_t begin, int64_t end) {
    const struct plan *plan = b->plan;
    float *outs[3] = {b->q, b->k, b->v};
    int64_t q_rows = (int64_t)plan->n_heads * plan->head_dim;
    int64_t kv_rows = (int64_t)plan->n_kv_heads * plan->head_dim;
    int64_t base = 0;
    for (int i = 0; i < 3; i++) {
        int64_t n_tiles = phase->w[i]->packed->n_tiles;
        int64_t tile0 = begin > base ? begin - base : 0;
        int64_t tile1 = end - base < n_tiles ? end - base : n_tiles;
        int64_t row = tile0 * TILE_ROWS, rows = i == 0 ? q_rows : kv_rows;
        base += n_tiles;
        if (tile0 >= tile1) continue;
        product(b, phase->w[i], tile0, tile1, act, batch->n_tokens, outs[i] + row, rows);
        if (!phase->bias[i]) continue;
        int64_t n = (tile1 * TILE_ROWS < rows ? tile1 * TILE_ROWS : rows) - row;
        add_bias(phase->bias[i] + row, n, batch->n_tokens, outs[i] + row, rows);
    }
}

static void qkv(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                int worker, int n_workers) {
    const struct plan *plan = b->plan;
    const struct phase *phase = step->phase;
    size_t width = pd_round_up(plan->hidden_size, BLOCK_COLS);
    const struct cpu_act *act = step->prepared ? b->acts
                                               : prepare(b, phase, b->x, width, plan->hidden_size,
                                                         batch->n_tokens, worker, n_workers);
    struct pd_share share = share_tiles(b, phase, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        qkv_tiles(b, batch, phase, act, begin, end);
}

/* Rows of tiles [begin, end) of x += W * in (+ bias). */
static void add_tiles(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                      const struct cpu_act *act, int worker, int64_t begin, int64_t end) {
    const struct cpu_matrix *m = phase->w[0]->packed;
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    float *out = b->workers[worker].products;
    const int64_t stride = PRODUCT_TILES * TILE_ROWS;
    for (int64_t tile = begin; tile < end; tile += PRODUCT_TILES) {
        int64_t last = tile + PRODUCT_TILES < end ? tile + PRODUCT_TILES : end;
        int64_t row = tile * TILE_ROWS;
        int64_t rows = (last * TILE_ROWS < m->rows ? last * TILE_ROWS : m->rows) - row;
        product(b, phase->w[0], tile, last, act, batch->n_tokens, out, stride);
        if (phase->bias[0]) add_bias(phase->bias[0] + row, rows, batch->n_tokens, out, stride);
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            for (int64_t r = 0; r < rows; r++)
                b->x[t * width + (size_t)(row + r)] += out[t * stride + r];
    }
}

/* For the output and the down projection. */
static void add_projection(struct cpu_backend *b, const struct batch *batch,
                           const struct phase *phase, const float *in, size_t in_stride, int64_t n,
                           int worker, int n_workers) {
    const struct cpu_act *act =
        prepare(b, phase, in, in_stride, n, batch->n_tokens, worker, n_workers);
    struct pd_share share = share_tiles(b, phase, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        add_tiles(b, batch, phase, act, worker, begin, end);
}

static float silu(float x) {
    return x / (1.0f + expf(-x));
}

/* Rows of tiles [begin, end) of hidden = silu(gate) * up. */
static void gate_up_tiles(struct cpu_backend *b, const struct batch *batch,
                          const struct phase *phase, const struct cpu_act *act, int worker,
                          int64_t begin, int64_t end) {
    const struct plan *plan = b->plan;
    size_t hidden_width = pd_round_up(plan->intermediate_size, BLOCK_COLS);
    const int64_t stride = PRODUCT_TILES * TILE_ROWS;
    float *gate = b->workers[worker].products;
    float *up = gate + plan->max_batch * stride;
    for (int64_t tile = begin; tile < end; tile += PRODUCT_TILES) {
        int64_t last = tile + PRODUCT_TILES < end ? tile + PRODUCT_TILES : end;
        int64_t row = tile * TILE_ROWS;
        int64_t stop = last * TILE_ROWS;
        if (stop > plan->intermediate_size) stop = plan->intermediate_size;
        product(b, phase->w[0], tile, last, act, batch->n_tokens, gate, stride);
        product(b, phase->w[1], tile, last, act, batch->n_tokens, up, stride);
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            for (int64_t r = 0; r < stop - row; r++)
                b->hidden[t * hidden_width + (size_t)(row + r)] =
                    silu(gate[t * stride + r]) * up[t * stride + r];
    }
}

static void gate_up(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                    int worker, int n_workers) {
    const struct plan *plan = b->plan;
    size_t width = pd_round_up(plan->hidden_size, BLOCK_COLS);
    const struct cpu_act *act =
        prepare(b, phase, b->x, width, plan->hidden_size, batch->n_tokens, worker, n_workers);
    struct pd_share share = share_tiles(b, phase, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        gate_up_tiles(b, batch, phase, act, worker, begin, end);
}

static void head(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                 int worker, int n_workers) {
    if (batch->n_logits == 0) return;
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    const float *x = b->x + (batch->n_tokens - batch->n_logits) * width;
    const struct cpu_act *act =
        prepare(b, phase, x, width, b->plan->hidden_size, batch->n_logits, worker, n_workers);
    struct pd_share share = share_tiles(b, phase, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        product(b, phase->w[0], begin, end, act, batch->n_logits, batch->logits + begin * TILE_ROWS,
                b->plan->n_vocab);
}

void cpu_step_run(struct cpu_backend *b, const struct batch *batch, const struct cpu_step *step,
                  int worker, int n_workers) {
    const struct plan *plan = b->plan;
    const struct phase *phase = step->phase;
    switch (step->kind) {
    case STEP_EMBED: embed(b, batch, phase, worker, n_workers); break;
    case STEP_NORM: norm_step(b, batch, phase, worker, n_workers); break;
    case STEP_QKV: qkv(b, batch, step, worker, n_workers); break;
    case STEP_ROPE: cpu_rope_step(b, batch, phase, worker, n_workers); break;
    case STEP_ATTN: cpu_attn_step(b, batch, step, worker, n_workers); break;
    case STEP_OUT: {
        size_t n = (size_t)plan->n_heads * plan->head_dim;
        add_projection(b, batch, phase, b->attn, pd_round_up(n, BLOCK_COLS), (int64_t)n, worker,
                       n_workers);
        break;
    }
    case STEP_GATE_UP: gate_up(b, batch, phase, worker, n_workers); break;
    case STEP_DOWN:
        add_projection(b, batch, phase, b->hidden, pd_round_up(plan->intermediate_size, BLOCK_COLS),
                       plan->intermediate_size, worker, n_workers);
        break;
    case STEP_HEAD: head(b, batch, phase, worker, n_workers); break;
    }
}
