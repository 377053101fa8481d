/**
 * Runs GPU kernels on the CPU. A group is an OS thread; its threads are fibres that switch only
 * where GPU threads meet: at a sync, a lane exchange, or while they wait for a copy. So they run in
 * an order that is known and can be chosen, and code that forgets to synchronise gives wrong results
 * or hangs, which is reported. Under TSan, accesses of two threads with no sync between them are
 * races, as on the device; under ASan, group memory is exactly as large as asked for.
 */
#ifndef PDVM_TESTS_EMULATOR_H
#define PDVM_TESTS_EMULATOR_H

#include "kernels/abi.h"

#include <stdbool.h>
#include <stddef.h>

typedef void (*emu_kernel)(const uint8_t *w, uint8_t *g, uint8_t *k, const struct gpu_launch p);

/** In which order a group's threads run. */
enum emu_order { EMU_FORWARD, EMU_REVERSE, EMU_RANDOM };

/** What is broken on purpose, to see that tests notice. */
enum emu_fault {
    EMU_NO_FAULT,
    EMU_SKIP_SYNC,  /**< the sync of index fault_at of every thread does nothing */
    EMU_SKIP_WAIT,  /**< waits for copies don't */
    EMU_EARLY_GRID, /**< the grid's barrier lets groups go on when they arrive */
};

struct emu_grid {
    uint32_t n_blocks;
    uint32_t n_threads;    /**< of a block, a multiple of 32 */
    uint32_t shared_bytes; /**< group memory */
    enum emu_order order;
    uint64_t seed;
    enum emu_fault fault;
    uint32_t fault_at;
};

/** Runs a kernel; NULL, or a message (valid until the next call) if it did something forbidden. */
const char *emu_launch(emu_kernel kernel, const uint8_t *w, uint8_t *g, uint8_t *k,
                       const struct gpu_launch *p, const struct emu_grid *grid);

/** Syncs that the busiest thread of the last launch went through. */
uint32_t emu_syncs(void);

/* ---- for the dialect --------------------------------------------------------------------- */

/** The running thread. */
struct emu_self {
    uint32_t block, n_blocks, thread, n_threads;
    uint8_t *shared;
};
const struct emu_self *emu_self(void);

enum emu_lane_op { EMU_LANE_SYNC, EMU_LANE_XOR, EMU_LANE_GET, EMU_LANE_BALLOT };

void emu_sync(void);
/** What all lanes of a warp do together: v of another lane (arg), or a bit of each. */
uint32_t emu_lanes(enum emu_lane_op op, uint32_t v, uint32_t arg);
/** A group's part (struct gpu_part), written as one, and read until its epoch is the wanted one. */
void emu_put(uint32_t *part, uint32_t a, uint32_t b, uint32_t epoch);
void emu_get(const uint32_t *part, uint32_t wanted, uint32_t out[3]);
/** Copies that happen later, and the barriers that they complete. */
void emu_copy(uint8_t *dst, const uint8_t *src, uint32_t bytes, uint64_t *barrier);
void emu_expect(uint64_t *b, uint32_t bytes);
void emu_wait(uint64_t *barrier, uint32_t parity);
/** Ends the launch with a message. Does not return. */
_Noreturn void emu_give_up(const char *message);

/** Nanoseconds, low half: stands for a clock of cycles. */
uint32_t emu_clock(void);

/* The kernels in the three forms of the dialect that the CPU can run. */
#define EMU_KERNELS(suffix)                                                                        \
    void pdvm_token_##suffix(const uint8_t *w, uint8_t *g, uint8_t *k, const struct gpu_launch p); \
    void pdvm_phase_##suffix(const uint8_t *w, uint8_t *g, uint8_t *k, const struct gpu_launch p); \
    void pdvm_read_##suffix(const uint8_t *w, uint8_t *g, uint8_t *k, const struct gpu_launch p);
EMU_KERNELS(c)    /* plain C */
EMU_KERNELS(cuda) /* CUDA C, loads of 16 bytes */
EMU_KERNELS(bulk) /* CUDA C, rings filled by copies */

#endif
