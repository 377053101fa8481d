/** The walk over a launch's phases and steps, and the entry points. */
#ifndef PDVM_KERNELS_TOKEN_H
#define PDVM_KERNELS_TOKEN_H

#include "attn.h"
#include "embed.h"
#include "matrix_phases.h"
#include "sample.h"

/** L2 prefetch of what the next phase reads before its streams. */
FN void prefetch_phase(const struct Ctx *c, LOCAL const struct gpu_phase *ph) {
    if (ph->kind == STAGE_END) return;
    if (is_product(ph->kind) && c->thread == 0)
        prefetch(c->w + ph->block_rows + 4 * (uint64_t)c->block);
    if (is_product(ph->kind) && ph->norm != GPU_NONE)
        for (uint32_t i = c->thread * (GPU_LINE / 4); i < ph->n_in;
             i += c->n_threads * (GPU_LINE / 4))
            prefetch(c->w + ph->norm + 4 * (uint64_t)i);
}

FN void run_init(const struct Ctx *c, const struct gpu_launch *p, struct Run *run) {
    const uint32_t words = (uint32_t)sizeof(struct gpu_plan) / 4;
    LOCAL uint32_t *plan = (LOCAL uint32_t *)&SH(plan);
    for (uint32_t i = c->thread; i < words; i += c->n_threads)
        plan[i] = W(uint32_t, p->plan + 4 * (uint64_t)i);
    stream_init(c);
    sync();
    run->step.index = 0;
    run->step.position = p->position;
    run->step.slot = p->slot;
    run->step.n_visible = p->n_visible;
    run->step.n_dropped = p->n_dropped;
    if (p->flags & GPU_STEP_STORED) {
        u32x4 stored = G(u32x4, SH(plan).step);
        run->step.position = stored.x;
        run->step.slot = stored.y;
        run->step.n_visible = stored.z;
        run->step.n_dropped = stored.w;
    }
    run->staging.step = 0;
    run->staging.phase = p->first_phase;
    run->walked = 0;
    run->target = G(uint32_t, SH(plan).epoch);
    run->sums_hi = SUMS_LO + 4 * SH(plan).max_rows;
    run->x = SUMS_LO + round_up_u(8 * SH(plan).max_rows, GPU_LINE);
    run->ring = run->x + round_up_u(SH(plan).x_bytes, GPU_LINE);
    run->stream.base = 0;
    run->stream.size = 0;
    run->stream.at = 0;
    run->stream.first = 0;
    run->stream.issued = 0;
    run->stream.ready = 0;
    run->opened = 0xffffffffu;
    run->next_begin = 0;
    run->next_end = 0;
    run->scale = 0.0f;
    run->amax = 0.0f;
    if (c->block == 0 && c->thread == 0 && p->flags & GPU_SAMPLING)
        G(uint32_t, SH(plan).result) = 0;
    for (uint32_t i = 0; i + 1 < STAGED; i++) stage(c, p, run, i);
    sync();
    if (!is_product(staged(c, run, 0)->kind)) return;
    stream_look_ahead(c, run, 0);
    stream_open(c, run, 0);
}

FN void step_forward(const struct gpu_launch *p, struct Step *s) {
    s->index++;
    s->position++;
    s->slot++;
    if (s->n_visible < p->n_ctx) {
        s->n_visible++;
        return;
    }
    s->n_dropped++;
    if (s->slot == p->n_ctx) s->slot = p->n_sink;
}

/** One phase, with all that goes on beside it. */
FN void run_phase(const struct Ctx *c, const struct gpu_launch *p, struct Run *run) {
    LOCAL const struct gpu_phase *ph = staged(c, run, 0);
    uint32_t next = next_product(c, run), kind = ph->kind;
    stage(c, p, run, run->walked + STAGED - 1);
    prefetch_phase(c, staged(c, run, 1));
    if (is_product(kind)) {
        matrix_phase(c, p, run, ph, next);
        return;
    }
    int open = next != 0 && run->opened != run->walked + next;
    if (open) stream_look_ahead(c, run, next);
    if (!open && next) stream_fill(c, run, &run->stream, GPU_RING_PAGES);
    if (kind == GPU_EMBED) embed_phase(c, p, run, ph);
    if (kind == GPU_ATTN) attn_apart(*c, p, *run, ph);
    if (kind == GPU_SAMPLE) sample_apart(*c, p, *run);
    if (!open) return;
    stream_open(c, run, next);
    stream_fill(c, run, &run->stream, BARRIER_PAGES);
}

FN void run_end(const struct Ctx *c, const struct gpu_launch *p, struct Run *run) {
    stream_drain(c, &run->stream);
    if (c->block != 0 || c->thread != 0) return;
    G(uint32_t, SH(plan).epoch) = run->target;
    if (p->end_phase == SH(plan).n_phases && !(p->flags & GPU_SAMPLING))
        G(uint32_t, SH(plan).result) = p->n_steps;
}

#if PDVM_GRID_SYNC
/** Any range of phases, any number of steps, in one cooperative launch. */
FN void run_launch(const struct Ctx *c, const struct gpu_launch *p) {
    struct Run run;
    run_init(c, p, &run);
    struct Place at;
    at.step = 0;
    at.phase = p->first_phase;
    at = place_settle(c, p, at);
    while (at.step < p->n_steps) {
        uint32_t step = at.step;
        run_phase(c, p, &run);
        at.phase++;
        at = place_settle(c, p, at);
        if (at.step >= p->n_steps) break;
        grid_sync(c, p, &run);
        run.walked++;
        if (at.step == step) continue;
        step_forward(p, &run.step);
        if (p->flags & GPU_SAMPLING && G(uint32_t, SH(plan).result) != 0) break;
    }
    if (p->flags & GPU_SAMPLING && c->block == 0 && c->thread == 0 &&
        G(uint32_t, SH(plan).result) == 0)
        G(uint32_t, SH(plan).result) = p->n_steps;
    run_end(c, p, &run);
}
#endif

/** One phase, or a part of one, of one step. */
FN void run_single(const struct Ctx *c, const struct gpu_launch *p) {
    struct Run run;
    run_init(c, p, &run);
    LOCAL const struct gpu_phase *ph = staged(c, &run, 0);
    if (p->part == GPU_NORM)
        norm_part(c, ph);
    else if (p->part == GPU_ROPE)
        rope_part(c, p, &run, ph);
    else
        run_phase(c, p, &run);
    run_end(c, p, &run);
}

#endif
