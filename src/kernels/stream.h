/**
 * Reading a stream of weights, 32 lanes together. Two forms behind the same functions: loads of up
 * to 16 bytes a lane, for any device; or the copy engine of compute capability 9.0 filling a ring of
 * GPU_RING_PAGES pages in group memory, one per warp, that the warp keeps full by itself. The ring
 * goes on filling across barriers, since weights depend on nothing: but with at most BARRIER_PAGES
 * pages under way, for the barrier's own messages queue behind them.
 */
#ifndef PDVM_KERNELS_STREAM_H
#define PDVM_KERNELS_STREAM_H

#include "group.h"

#define RING (GPU_RING_PAGES * GPU_PAGE)
#define BARRIER_PAGES 2u
#define PREFETCH_AHEAD 4096u /* bytes, portable form */

#if PDVM_BULK

FN LOCAL uint64_t *page_full(const struct Ctx *c, uint32_t page) {
    return &SH(full)[c->warp * GPU_RING_PAGES + page % GPU_RING_PAGES];
}

/** Asks for pages until `most` are held or under way. Lanes have read what lies before s->at. */
FN void stream_fill(const struct Ctx *c, const struct Run *run, struct Stream *s, uint32_t most) {
    uint32_t pages = (s->size + GPU_PAGE - 1) / GPU_PAGE;
    uint32_t limit = min_u(s->at / GPU_PAGE + most, pages);
    NO_UNROLL
    for (; s->issued < limit; s->issued++) {
        if (c->lane != 0) continue;
        uint32_t page = s->first + s->issued;
        uint32_t from = s->issued * GPU_PAGE;
        uint32_t bytes = min_u(s->size - from, GPU_PAGE);
        LOCAL uint8_t *to =
            &L(uint8_t, run->ring + c->warp * RING + page % GPU_RING_PAGES * GPU_PAGE);
        ptx_mbarrier_expect(page_full(c, page), bytes);
        ptx_bulk_load(to, c->w + s->base + from, bytes, page_full(c, page));
    }
}

/** Waits for the next `bytes`. */
FN void stream_need(const struct Ctx *c, struct Stream *s, uint32_t bytes) {
    NO_UNROLL
    while (s->ready * GPU_PAGE < s->at + bytes && s->ready < s->issued) {
        uint32_t page = s->first + s->ready;
        ptx_mbarrier_wait(page_full(c, page), page / GPU_RING_PAGES & 1);
        s->ready++;
    }
}

/** Goes past `bytes` that all lanes have read. */
FN void stream_advance(const struct Ctx *c, const struct Run *run, struct Stream *s,
                       uint32_t bytes) {
    uint32_t page = s->at / GPU_PAGE;
    s->at += bytes;
    if (s->at / GPU_PAGE == page) return;
    lane_sync();
    stream_fill(c, run, s, GPU_RING_PAGES);
}

FN LOCAL const uint8_t *stream_at(const struct Ctx *c, const struct Run *run,
                                  const struct Stream *s, uint32_t offset) {
    uint32_t at = s->first * GPU_PAGE + s->at + offset;
    return &L(const uint8_t, run->ring + c->warp * RING + at % RING);
}

FN u32x4 stream_x4(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                   uint32_t offset) {
    return *(LOCAL const u32x4 *)stream_at(c, run, s, offset + 16 * c->lane);
}
FN u32x2 stream_x2(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                   uint32_t offset) {
    return *(LOCAL const u32x2 *)stream_at(c, run, s, offset + 8 * c->lane);
}
FN uint32_t stream_x1(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                      uint32_t offset) {
    return *(LOCAL const uint32_t *)stream_at(c, run, s, offset + 4 * c->lane);
}
FN uint32_t stream_u16(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                       uint32_t offset) {
    return *(LOCAL const uint16_t *)stream_at(c, run, s, offset + 2 * c->lane);
}
/** A word that all lanes read. */
FN uint32_t stream_word(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                        uint32_t offset) {
    return *(LOCAL const uint32_t *)stream_at(c, run, s, offset);
}

FN void stream_init(const struct Ctx *c) {
    for (uint32_t i = c->thread; i < c->n_warps * GPU_RING_PAGES; i += c->n_threads) {
        ptx_mbarrier_init(&SH(full)[i]);
    }
    ptx_mbarrier_fence();
}

/** Waits for what was asked for and not read: group memory must not be written after the end. */
FN void stream_drain(const struct Ctx *c, struct Stream *s) {
    for (; s->ready < s->issued; s->ready++) {
        uint32_t page = s->first + s->ready;
        ptx_mbarrier_wait(page_full(c, page), page / GPU_RING_PAGES & 1);
    }
}

#else

FN void stream_fill(const struct Ctx *c, const struct Run *run, struct Stream *s, uint32_t most) {
    uint32_t limit = min_u(s->size, most * GPU_PAGE);
    (void)run;
    for (uint32_t i = c->lane * GPU_LINE; i < limit; i += GPU_LANES * GPU_LINE)
        prefetch(c->w + s->base + i);
}

FN void stream_need(const struct Ctx *c, struct Stream *s, uint32_t bytes) {
    (void)c;
    (void)s;
    (void)bytes;
}

FN void stream_advance(const struct Ctx *c, const struct Run *run, struct Stream *s,
                       uint32_t bytes) {
    uint32_t ahead = s->at + PREFETCH_AHEAD + c->lane * GPU_LINE;
    (void)run;
    if (c->lane * GPU_LINE < bytes && ahead < s->size) prefetch(c->w + s->base + ahead);
    s->at += bytes;
}

FN u32x4 stream_x4(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                   uint32_t offset) {
    (void)run;
    return load_x4(c->w + s->base + s->at + offset + 16 * c->lane);
}
FN u32x2 stream_x2(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                   uint32_t offset) {
    (void)run;
    return load_x2(c->w + s->base + s->at + offset + 8 * c->lane);
}
FN uint32_t stream_x1(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                      uint32_t offset) {
    (void)run;
    return load_x1(c->w + s->base + s->at + offset + 4 * c->lane);
}
FN uint32_t stream_u16(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                       uint32_t offset) {
    (void)run;
    return load_u16(c->w + s->base + s->at + offset + 2 * c->lane);
}
FN uint32_t stream_word(const struct Ctx *c, const struct Run *run, const struct Stream *s,
                        uint32_t offset) {
    (void)run;
    return load_x1(c->w + s->base + s->at + offset);
}

FN void stream_init(const struct Ctx *c) {
    (void)c;
}

FN void stream_drain(const struct Ctx *c, struct Stream *s) {
    (void)c;
    (void)s;
}

#endif

/** The next product phase in the walk, as a distance from the current one; 0: none is staged. */
FN uint32_t next_product(const struct Ctx *c, const struct Run *run) {
    for (uint32_t i = 1; i + 1 < STAGED; i++) { /* the last is just being staged */
        uint32_t kind = staged(c, run, i)->kind;
        if (kind == STAGE_END) return 0;
        if (is_product(kind)) return i;
    }
    return 0;
}

/** Reads where the warp's stream of the next product phase lies, long before it is opened. */
FN void stream_look_ahead(const struct Ctx *c, struct Run *run, uint32_t distance) {
    uint64_t table = staged(c, run, distance)->streams;
    uint64_t i = (uint64_t)c->block * c->n_warps + c->warp;
    run->next_begin = W(uint32_t, table + 4 * i);
    run->next_end = W(uint32_t, table + 4 * i + 4);
}

/** Makes it the current stream; the one before has been read to its end. */
FN void stream_open(const struct Ctx *c, struct Run *run, uint32_t distance) {
    struct Stream *s = &run->stream;
    s->first += s->issued;
    s->base = staged(c, run, distance)->weights + 16 * (uint64_t)run->next_begin;
    s->size = 16 * (run->next_end - run->next_begin);
    s->at = 0;
    s->issued = 0;
    s->ready = 0;
    run->opened = run->walked + distance;
}

#endif
