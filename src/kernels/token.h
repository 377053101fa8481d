/** The walk over a launch's phases and steps, and the entry points. */
#ifndef PDVM_KERNELS_TOKEN_H
#define PDVM_KERNELS_TOKEN_H

#include "attn.h"
#include "embed.h"
#include "matrix_phases.h"
#include "sample.h"

FN void run_init(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Run *run) {
    const uint32_t words = (uint32_t)sizeof(struct gpu_plan) / 4;
    LOCAL uint32_t *plan = (LOCAL uint32_t *)&SH(plan);
    for (uint32_t i = c->thread; i < words; i += c->n_threads)
        plan[i] = W(uint32_t, p->plan + 4 * (uint64_t)i);
    stream_init(c);
    LOCAL uint32_t *streams = (LOCAL uint32_t *)&SH(stream);
    for (uint32_t i = c->thread; i < (uint32_t)sizeof(struct Stream) / 4 * GPU_MAX_WARPS;
         i += c->n_threads)
        streams[i] = 0;
    sync();
    if (c->thread == 0) {
        struct Step step;
        step.index = 0;
        step.position = p->position;
        step.slot = p->slot;
        step.n_visible = p->n_visible;
        step.n_dropped = p->n_dropped;
        SH(step) = step;
        SH(at_sums_hi) = SUMS_LO + 4 * SH(plan).max_rows;
        SH(at_x) = SUMS_LO + round_up_u(8 * SH(plan).max_rows, GPU_LINE);
        SH(at_ring) = SH(at_x) + round_up_u(SH(plan).x_bytes, GPU_LINE);
    }
    run->staging.step = 0;
    run->staging.phase = p->first_phase;
    run->walked = 0;
    run->target = G(uint32_t, SH(plan).epoch);
    run->opened = 0xffffffffu;
    if (c->block == 0 && c->thread == 0 && p->flags & GPU_SAMPLING)
        G(uint32_t, SH(plan).result) = 0;
    run->phase = p->first_phase;
    if (c->thread < STAGED) SH(phase)[c->thread].kind = STAGE_END;
    sync();
    for (uint32_t i = 0; i + 1 < STAGED; i++) {
        struct Staging s = stage_load(c, p, run, 0);
        stage_store(c, s, i, 0);
        sync();
    }
    if (is_product(staged(c, run, 0)->kind)) stream_open(c, run, 0, stream_look_ahead(c, run, 0));
}

FN void step_forward(LOCAL const struct gpu_launch *p, LOCAL struct Step *s) {
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
FN void run_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Run *run) {
    LOCAL const struct gpu_phase *ph = staged(c, run, 0);
    uint32_t next = next_product(c, run), kind = ph->kind;
    take_time(c, p, run, 0);
    struct Staging staging = stage_load(c, p, run, run->walked + 1);
    if (is_product(kind)) {
        matrix_phase(c, p, run, ph, next);
    } else {
        int open = next != 0 && run->opened != run->walked + next;
        struct Extent extent = {0, 0};
        if (open) extent = stream_look_ahead(c, run, next);
        if (!open && next) stream_fill_up(c);
        if (kind == GPU_EMBED) embed_phase(c, p, ph);
        if (kind == GPU_ATTN) attn_phase(c, p, ph);
        if (kind == GPU_SAMPLE) sample_phase(c, p);
        if (open) stream_open(c, run, next, extent);
    }
    stage_store(c, staging, run->walked + STAGED - 1, run->walked + 1);
    take_time(c, p, run, 3);
}

FN void run_end(const struct Ctx *c, LOCAL const struct gpu_launch *p, struct Run *run) {
    stream_drain(c);
    if (c->block != 0 || c->thread != 0) return;
    G(uint32_t, SH(plan).epoch) = run->target;
    if (p->end_phase == SH(plan).n_phases && !(p->flags & GPU_SAMPLING))
        G(uint32_t, SH(plan).result) = p->n_steps;
}

#if PDVM_GRID_SYNC
/** Any range of phases, any number of steps, in one cooperative launch. */
FN void run_launch(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    struct Run run;
    run_init(c, p, &run);
    struct Place at;
    at.step = 0;
    at.phase = p->first_phase;
    at = place_settle(c, p, at);
    while (at.step < p->n_steps) {
        uint32_t step = at.step;
        run.phase = at.phase;
        run_phase(c, p, &run);
        at.phase++;
        at = place_settle(c, p, at);
        if (at.step >= p->n_steps) break;
        grid_sync(c, p, &run);
        run.walked++;
        if (at.step == step) continue;
        if (c->thread == 0) step_forward(p, &SH(step));
        sync();
        if (p->flags & GPU_SAMPLING && G(uint32_t, SH(plan).result) != 0) break;
    }
    if (p->flags & GPU_SAMPLING && c->block == 0 && c->thread == 0 &&
        G(uint32_t, SH(plan).result) == 0)
        G(uint32_t, SH(plan).result) = p->n_steps;
    run_end(c, p, &run);
}
#endif

/** One phase, or a part of one, of one step. */
FN void run_single(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    struct Run run;
    run_init(c, p, &run);
    LOCAL const struct gpu_phase *ph = staged(c, &run, 0);
    if (p->part == GPU_NORM)
        norm_part(c, ph);
    else if (p->part == GPU_ROPE)
        rope_part(c, p, ph);
    else
        run_phase(c, p, &run);
    run_end(c, p, &run);
}

#endif
