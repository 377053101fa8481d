/** The walk over a launch's phases and steps, and the entry points. */
#ifndef PDVM_KERNELS_TOKEN_H
#define PDVM_KERNELS_TOKEN_H

#include "attn.h"
#include "embed.h"
#include "matrix_phases.h"
#include "sample.h"

FN struct Place place_after(const struct Ctx *c, LOCAL const struct gpu_launch *p,
                            struct Place at) {
    at.phase++;
    return place_settle(c, p, at);
}

/** Sets the walk's entry for phase number `walked`, which is at `at`. One thread only. */
FN void walk_to(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                struct Place at, struct Place staging, uint32_t epoch) {
    struct Walk w;
    w.at = at;
    w.next = place_after(c, p, at);
    w.staging = staging;
    w.epoch = epoch;
    w.product = next_product(c, walked);
    SH(walk)[walked % 2] = w;
}

/**
 * The walk's entry for the next phase, by the warp that has least to do at a phase's end and that
 * has waited for what it staged.
 */
FN void walk_on(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked) {
    if (c->warp + 1 != c->n_warps) return;
    lane_sync();
    if (c->lane == 0)
        walk_to(c, p, walked + 1, WALK(next), place_after(c, p, WALK(staging)), WALK(epoch) + 1);
    lane_sync();
}

/** All that phase `number` needs and that does not come from the phase before it; see first_aside. */
FN void prepare(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t number) {
    if (c->thread < first_aside(c)) return;
    if (c->warp + 1 == c->n_warps)
        stage(c, p, SH(walk)[number % 2].staging, number + STAGED - 1, number + 1);
    if (is_product(record(c, number)->kind)) rows_prepare(c, number);
    if (record(c, number)->kind == GPU_ATTN) attn_prefetch(c, p, record(c, number), first_aside(c));
}

/** Group memory, and the first phase's stream under way. */
FN void run_init(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    const uint32_t words = (uint32_t)sizeof(struct gpu_plan) / 4;
    LOCAL uint32_t *plan = (LOCAL uint32_t *)&SH(plan);
    for (uint32_t i = c->thread; i < words; i += c->n_threads)
        plan[i] = W(uint32_t, p->plan + 4 * (uint64_t)i);
    stream_init(c);
    LOCAL uint32_t *streams = (LOCAL uint32_t *)&SH(stream);
    for (uint32_t i = c->thread; i < (uint32_t)sizeof(struct Stream) / 4 * GPU_MAX_WARPS;
         i += c->n_threads)
        streams[i] = 0;
    if (c->thread < STAGED) SH(phase)[c->thread].kind = STAGE_END;
    sync();
    struct Place at;
    at.step = 0;
    at.phase = p->first_phase;
    at = place_settle(c, p, at);
    struct Place staging = at;
    NO_UNROLL
    for (uint32_t i = 0; i + 1 < STAGED; i++) {
        stage(c, p, staging, i, i == 0 ? STAGED - 1 : 0); /* where nothing is */
        staging = place_after(c, p, staging);
        async_wait();
        sync();
    }
    if (c->lane == 0) SH(stream)[c->warp].opened = 0xffffffffu;
    if (c->thread == 0) {
        struct Step step;
        step.index = 0;
        step.position = p->position;
        step.slot = p->slot;
        step.n_visible = p->n_visible;
        step.n_dropped = p->n_dropped;
        if (p->flags & GPU_STEP_STORED) {
            u32x4 stored = G(u32x4, SH(plan).step);
            step.position = stored.x;
            step.slot = stored.y;
            step.n_visible = stored.z;
            step.n_dropped = stored.w;
        }
        SH(step) = step;
        SH(at_sums_hi) = SUMS_LO + 4 * SH(plan).max_rows;
        SH(at_rows) = SUMS_LO + round_up_u(8 * SH(plan).max_rows, GPU_LINE);
        SH(at_parts) = SH(at_rows) + round_up_u(16 * SH(plan).max_rows, GPU_LINE);
        SH(at_x) = SH(at_parts) + round_up_u(8 * c->n_blocks, GPU_LINE);
        SH(at_ring) = SH(at_x) + round_up_u(SH(plan).x_bytes, GPU_LINE);
        walk_to(c, p, 0, at, staging, G(uint32_t, SH(plan).epoch) + 1);
        if (c->block == 0 && p->flags & GPU_SAMPLING) G(uint32_t, SH(plan).result) = 0;
    }
    sync();
    if (is_product(record(c, 0)->kind)) {
        stream_look_ahead(c, 0);
        async_wait();
        stream_open(c, 0);
        parts_load(c, carry_for(at.phase));
    }
    prepare(c, p, 0);
    sync();
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

/**
 * One phase, with all that goes on beside it, up to the group's part of it. Warp 0 sends that as soon
 * as it can; for the others there is still something to do then.
 */
FN void run_phase(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked) {
    LOCAL const struct gpu_phase *ph = record(c, walked);
    struct gpu_part part = part_start();
    uint32_t next = WALK(product), kind = ph->kind;
    int alone = 0;
    take_time(c, p, walked, 0);
    if (is_product(kind)) {
        alone = matrix_phase(c, p, walked, ph, next, &part);
    } else {
        int open = next && SH(stream)[c->warp].opened != walked + next;
        if (open) stream_look_ahead(c, walked + next);
        if (!open && next && kind != GPU_ATTN) stream_fill_up(c);
        if (kind == GPU_EMBED) embed_phase(c, p, ph, &part);
        if (kind == GPU_ATTN) attn_phase(c, p, walked, ph, !open && next, &part);
        if (kind == GPU_SAMPLE) sample_phase(c, p);
        async_wait();
        if (open) stream_open(c, walked + next);
    }
    if (!alone) part_put(c, part);
    sync();
    if (c->warp == 0) part_publish(c, p, walked, alone ? part : part_join(c));
    take_time(c, p, walked, 3);
    walk_on(c, p, walked);
}

FN void run_end(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked) {
    stream_drain(c);
    if (c->block != 0 || c->thread != 0) return;
    /* Only behind a barrier have all blocks read it. */
    if (walked > 0) G(uint32_t, SH(plan).epoch) = WALK(epoch) - 1;
    if (p->end_phase == SH(plan).n_phases && !(p->flags & GPU_SAMPLING))
        G(uint32_t, SH(plan).result) = p->n_steps;
}

#if PDVM_GRID_SYNC
/** Any range of phases, any number of steps, in one cooperative launch. */
FN void run_launch(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    uint32_t walked = 0;
    run_init(c, p);
    if (WALK(at).step >= p->n_steps) return;
    while (1) {
        run_phase(c, p, walked);
        if (WALK(next).step >= p->n_steps) break;
        prepare(c, p, walked + 1);
        parts_wait(c, p, walked);
        uint32_t step = WALK(at).step;
        walked++;
        if (WALK(at).step == step) continue;
        if (c->thread == 0) step_forward(p, &SH(step));
        sync();
        if (p->flags & GPU_SAMPLING && G(uint32_t, SH(plan).result) != 0) break;
    }
    if (p->flags & GPU_SAMPLING && c->block == 0 && c->thread == 0 &&
        G(uint32_t, SH(plan).result) == 0)
        G(uint32_t, SH(plan).result) = p->n_steps;
    run_end(c, p, walked);
}
#endif

/** One phase, or a part of one, of one step. */
FN void run_single(const struct Ctx *c, LOCAL const struct gpu_launch *p) {
    run_init(c, p);
    LOCAL const struct gpu_phase *ph = record(c, 0);
    if (p->part == GPU_NORM)
        norm_part(c, ph);
    else if (p->part == GPU_ROPE)
        rope_part(c, p, ph);
    else
        run_phase(c, p, 0);
    run_end(c, p, 0);
}

#endif
