/**
 * Parts: what groups tell each other at the end of a phase, which is the barrier between phases, too
 * (struct gpu_part).
 */
#ifndef PDVM_KERNELS_PARTS_H
#define PDVM_KERNELS_PARTS_H

#include "group.h"

#define PARTS_AT_ONCE 5 /* that a lane takes: of 132 blocks, one go */

FN struct gpu_part part_start(void) {
    struct gpu_part part;
    part.squares = 0.0f;
    part.largest = 0;
    part.epoch = 0;
    part.reserved = 0;
    return part;
}

FN uint64_t part_at(const struct Ctx *c, uint32_t buffer, uint32_t block) {
    return SH(plan).parts +
           (uint64_t)(buffer * c->n_blocks + block) * (uint32_t)sizeof(struct gpu_part);
}

/** The buffer between launches, for the phase that reads it. */
FN uint32_t carry_for(uint32_t phase) {
    return 2 + (phase + 1) % 2;
}

/** Keeps what a warp knows of the group's part; part_join needs a sync before. */
FN void part_put(const struct Ctx *c, struct gpu_part part) {
    float squares = lane_sum(part.squares);
    uint32_t largest = lane_max_u(part.largest);
    if (c->lane != 0) return;
    SH(part_f)[c->warp] = squares;
    SH(part_u)[c->warp] = largest;
}

/** A warp: what all warps put, in their order. */
FN struct gpu_part part_join(const struct Ctx *c) {
    struct gpu_part part = part_start();
    if (c->lane < c->n_warps) {
        part.squares = SH(part_f)[c->lane];
        part.largest = SH(part_u)[c->lane];
    }
    return part;
}

/**
 * Warp 0: the group is through with the phase; `part` is what the lanes know. The order of the
 * additions is the same every time.
 */
FN void part_publish(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                     struct gpu_part part) {
    float squares = lane_sum(part.squares);
    uint32_t largest = lane_max_u(part.largest);
    if (c->thread != 0) return;
    u32x4 whole = MAKE_X4(float_bits(squares), largest, WALK(epoch), 0);
    if (WALK(next).step >= p->n_steps) { /* the end of the launch is the barrier */
        uint32_t reader = p->flags & GPU_X_IN ? p->x_phase : WALK(at).phase + 1;
        G(u32x4, part_at(c, carry_for(reader), c->block)) = whole;
        return;
    }
#if PDVM_GRID_SYNC
    grid_put(c->g + part_at(c, walked % 2, c->block), whole);
#endif
}

/** Brings the parts that an earlier launch left to group memory. Needs a sync. */
FN void parts_load(const struct Ctx *c, uint32_t buffer) {
    for (uint32_t i = c->thread; i < c->n_blocks; i += c->n_threads) {
        u32x2 part = G(u32x2, part_at(c, buffer, i));
        L(u32x2, SH(at_parts) + 8 * i) = part;
    }
}

#if PDVM_GRID_SYNC
FN void parts_missing(const struct Ctx *c, uint32_t walked, uint32_t block) {
    GLOBAL uint32_t *fault = &G(uint32_t, SH(plan).fault);
    fault[1] = walked;
    fault[2] = c->block;
    fault[3] = block;
    fault[0] = 1;
    give_up();
}

/** A warp waits for PARTS_AT_ONCE times 32 parts of phase number `walked`, from `base` on. */
FN void parts_poll(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked,
                   uint32_t base) {
    uint32_t epoch = WALK(epoch), polls = 0, missing = 1;
    GLOBAL const uint8_t *from = c->g + part_at(c, walked % 2, 0);
    u32x4 part[PARTS_AT_ONCE];
    uint32_t at[PARTS_AT_ONCE];
    UNROLL
    for (uint32_t k = 0; k < PARTS_AT_ONCE; k++)
        at[k] = min_u(base + k * GPU_LANES + c->lane, c->n_blocks - 1);
    while (missing) {
        UNROLL
        for (uint32_t k = 0; k + 1 < PARTS_AT_ONCE; k++)
            part[k] = grid_get(from + 16 * at[k], epoch);
        part[PARTS_AT_ONCE - 1] = grid_get_last(from + 16 * at[PARTS_AT_ONCE - 1], epoch);
        missing = 0;
        UNROLL
        for (uint32_t k = 0; k < PARTS_AT_ONCE; k++) missing |= part[k].z ^ epoch;
        if (missing && ++polls == p->spin_limit) parts_missing(c, walked, base);
    }
    UNROLL
    for (uint32_t k = 0; k < PARTS_AT_ONCE; k++)
        if (base + k * GPU_LANES + c->lane == at[k]) /* not another lane's */
            L(u32x2, SH(at_parts) + 8 * at[k]) = MAKE_X2(part[k].x, part[k].y);
}

/** The barrier behind phase number `walked`: all groups' parts, into group memory. */
FN void parts_wait(const struct Ctx *c, LOCAL const struct gpu_launch *p, uint32_t walked) {
    NO_UNROLL
    for (uint32_t base = 0; c->warp == 0 && base < c->n_blocks; base += PARTS_AT_ONCE * GPU_LANES)
        parts_poll(c, p, walked, base);
    sync();
}
#endif

/** All parts joined, by every warp for itself: the loads of its vector take longer. */
FN struct gpu_part parts_join(const struct Ctx *c) {
    struct gpu_part all = part_start();
    NO_UNROLL
    for (uint32_t base = 0; base < c->n_blocks; base += PARTS_AT_ONCE * GPU_LANES) {
        UNROLL
        for (uint32_t k = 0; k < PARTS_AT_ONCE; k++) {
            uint32_t i = base + k * GPU_LANES + c->lane;
            u32x2 part = MAKE_X2(0, 0);
            if (i < c->n_blocks) part = L(u32x2, SH(at_parts) + 8 * i);
            all.squares += bits_float(part.x);
            all.largest = max_u(all.largest, part.y);
        }
    }
    all.squares = lane_sum(all.squares);
    all.largest = lane_max_u(all.largest);
    return all;
}

#endif
