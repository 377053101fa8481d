/* The bodies of a token's phases, as one of several workers runs them. */
#include "backend/cpu/attention.h"
#include "backend/cpu/batch.h"
#include "base/checked.h"

/* Whether so many tokens are multiplied with panels of expanded weights. */
static bool is_batch(const struct cpu_backend *b, uint32_t n) {
    return n >= b->kernels->batch->min_tokens;
}

/* Deals out the tiles of the phase's matrices for n tokens, counted through all of them one after
 * another (gate and up are counted as pairs). */
static struct pd_share share_tiles(const struct cpu_backend *b, const struct phase *phase,
                                   uint32_t n, int worker, int n_workers) {
    size_t i = (size_t)(phase - b->plan->phases);
    const int64_t *split = b->splits + i * ((size_t)n_workers + 1);
    int64_t grain = b->grains[i];
    if (is_batch(b, n)) grain = PANEL_STEP / TILE_ROWS; /* it is not bytes that take the time */
    return pd_share_ranges(b->threads, worker, n_workers, split, grain);
}

/* Products with what prepare() has prepared for n tokens. */
static void product(const struct cpu_backend *b, const struct backend_matrix *m, int64_t tile0,
                    int64_t tile1, uint32_t n, const struct cpu_act *act, int worker, float *out,
                    int64_t stride) {
    const struct cpu_matrix *p = m->packed;
    if (is_batch(b, n))
        cpu_batch_product(b->kernels, p, tile0, tile1, &b->batch, n, b->workers[worker].panel, out,
                          stride);
    else
        b->kernels->product[p->kind][p->dense](p, tile0, tile1, act, n, out, stride);
}

static bool takes_integers(const struct phase *phase) {
    for (int i = 0; i < 3; i++)
        if (phase->w[i] && cpu_kind_is_integer(phase->w[i]->packed->kind)) return true;
    return false;
}

/* Brings one vector into the form(s) that the phase's matrices multiply. */
static void prepare_one(const struct cpu_backend *b, const struct phase *phase, const float *in,
                        int64_t n, float *normed, struct cpu_act *act) {
    if (phase->norm) {
        b->kernels->rms_norm(in, phase->norm, n, b->plan->rms_norm_eps, normed);
        in = normed;
    }
    act->x = (float *)(uintptr_t)in; /* all vectors are zero up to a multiple of 64 */
    if (takes_integers(phase)) b->kernels->quantise(in, n, act);
}

/* The same for a token tile of a batch of `count`. */
static void prepare_tile(struct cpu_backend *b, const struct phase *phase, const float *in,
                         size_t stride, int64_t n, uint32_t count, uint32_t tile, int worker) {
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    uint32_t first = tile * BATCH_TOKENS;
    uint32_t tokens = count - first < BATCH_TOKENS ? count - first : BATCH_TOKENS;
    in += first * stride;
    if (phase->norm) {
        float *normed = b->normed + first * width;
        for (uint32_t t = 0; t < tokens; t++)
            b->kernels->rms_norm(in + t * stride, phase->norm, n, b->plan->rms_norm_eps,
                                 normed + t * width);
        in = normed;
        stride = width;
    }
    for (uint32_t t = 0; t < tokens; t++) b->batch.x[first + t] = in + t * stride;
    if (takes_integers(phase))
        cpu_batch_pack(b->kernels, &b->batch, tile, in, stride, n, tokens, &b->workers[worker].act);
}

/* Prepares `count` vectors, `stride` floats apart, shared out among the workers. */
static void prepare_shared(struct cpu_backend *b, const struct phase *phase, const float *in,
                           size_t stride, int64_t n, uint32_t count, int worker, int n_workers) {
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    bool tiles = is_batch(b, count);
    int64_t items = tiles ? (count + BATCH_TOKENS - 1) / BATCH_TOKENS : count;
    struct pd_share share = pd_share_items(b->threads, worker, n_workers, items, 1);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        for (size_t i = (size_t)begin; i < (size_t)end; i++) {
            if (tiles)
                prepare_tile(b, phase, in, stride, n, count, (uint32_t)i, worker);
            else
                prepare_one(b, phase, in + i * stride, n, b->normed + i * width, &b->acts[i]);
        }
}

/*
 * The same for all workers to use. One token every worker prepares for itself: that is cheaper than
 * a barrier.
 */
static const struct cpu_act *prepare(struct cpu_backend *b, const struct phase *phase,
                                     const float *in, size_t stride, int64_t n, uint32_t count,
                                     int worker, int n_workers) {
    if (count == 1) {
        struct cpu_worker *w = &b->workers[worker];
        prepare_one(b, phase, in, n, w->normed, &w->act);
        return &w->act;
    }
    prepare_shared(b, phase, in, stride, n, count, worker, n_workers);
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
    prepare_shared(b, phase, b->x, width, b->plan->hidden_size, batch->n_tokens, worker, n_workers);
}

/* Tiles whose products are computed before they are used. */
static int64_t chunk_tiles(const struct cpu_backend *b, uint32_t n) {
    return is_batch(b, n) ? PANEL_MAX_ROWS / TILE_ROWS : PRODUCT_TILES;
}

static void add_bias(const float *bias, int64_t n, uint32_t n_tokens, float *out, int64_t stride) {
    for (uint32_t t = 0; t < n_tokens; t++)
        for (int64_t r = 0; r < n; r++) out[t * stride + r] += bias[r];
}

/* Tiles [begin, end) of q, k and v, counted through all three. */
static void qkv_tiles(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                      const struct cpu_act *act, int worker, int64_t begin, int64_t end) {
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
        product(b, phase->w[i], tile0, tile1, batch->n_tokens, act, worker, outs[i] + row, rows);
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
    struct pd_share share = share_tiles(b, phase, batch->n_tokens, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        qkv_tiles(b, batch, phase, act, worker, begin, end);
}

/* Rows of tiles [begin, end) of x += W * in (+ bias). */
static void add_tiles(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                      const struct cpu_act *act, int worker, int64_t begin, int64_t end) {
    const struct cpu_matrix *m = phase->w[0]->packed;
    size_t width = pd_round_up(b->plan->hidden_size, BLOCK_COLS);
    float *out = b->workers[worker].products;
    const int64_t step = chunk_tiles(b, batch->n_tokens), stride = step * TILE_ROWS;
    for (int64_t tile = begin; tile < end; tile += step) {
        int64_t last = tile + step < end ? tile + step : end;
        int64_t row = tile * TILE_ROWS;
        int64_t rows = (last * TILE_ROWS < m->rows ? last * TILE_ROWS : m->rows) - row;
        product(b, phase->w[0], tile, last, batch->n_tokens, act, worker, out, stride);
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
    struct pd_share share = share_tiles(b, phase, batch->n_tokens, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        add_tiles(b, batch, phase, act, worker, begin, end);
}

/* Rows of tiles [begin, end) of hidden = silu(gate) * up. */
static void gate_up_tiles(struct cpu_backend *b, const struct batch *batch,
                          const struct phase *phase, const struct cpu_act *act, int worker,
                          int64_t begin, int64_t end) {
    const struct plan *plan = b->plan;
    size_t hidden_width = pd_round_up(plan->intermediate_size, BLOCK_COLS);
    const int64_t step = chunk_tiles(b, batch->n_tokens), stride = step * TILE_ROWS;
    float *up = b->workers[worker].products;
    for (int64_t tile = begin; tile < end; tile += step) {
        int64_t last = tile + step < end ? tile + step : end;
        int64_t row = tile * TILE_ROWS;
        int64_t stop = last * TILE_ROWS;
        if (stop > plan->intermediate_size) stop = plan->intermediate_size;
        float *gate = b->hidden + row;
        product(b, phase->w[0], tile, last, batch->n_tokens, act, worker, gate,
                (int64_t)hidden_width);
        product(b, phase->w[1], tile, last, batch->n_tokens, act, worker, up, stride);
        for (uint32_t t = 0; t < batch->n_tokens; t++)
            b->kernels->attention->silu_mul(gate + t * hidden_width, up + t * stride, stop - row,
                                            gate + t * hidden_width);
    }
}

static void gate_up(struct cpu_backend *b, const struct batch *batch, const struct phase *phase,
                    int worker, int n_workers) {
    const struct plan *plan = b->plan;
    size_t width = pd_round_up(plan->hidden_size, BLOCK_COLS);
    const struct cpu_act *act =
        prepare(b, phase, b->x, width, plan->hidden_size, batch->n_tokens, worker, n_workers);
    struct pd_share share = share_tiles(b, phase, batch->n_tokens, worker, n_workers);
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
    struct pd_share share = share_tiles(b, phase, batch->n_logits, worker, n_workers);
    for (int64_t begin, end; pd_share_next(&share, &begin, &end);)
        product(b, phase->w[0], begin, end, batch->n_logits, act, worker,
                batch->logits + begin * TILE_ROWS, b->plan->n_vocab);
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
