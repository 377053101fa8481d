/** What src/kernels/dialect_c.h asks for, by the emulator. */
#ifndef PDVM_TESTS_NATIVE_H
#define PDVM_TESTS_NATIVE_H

#include "emulator/emulator.h"
#include "emulator/entry.h"

static inline void native_sync(void) {
    emu_sync();
}
static inline void native_lane_sync(void) {
    emu_lanes(EMU_LANE_SYNC, 0, 0);
}
static inline uint32_t native_lane_xor(uint32_t v, uint32_t mask) {
    return emu_lanes(EMU_LANE_XOR, v, mask);
}
static inline uint32_t native_lane_get(uint32_t v, uint32_t lane) {
    return emu_lanes(EMU_LANE_GET, v, lane);
}
static inline uint32_t native_lane_ballot(int p) {
    return emu_lanes(EMU_LANE_BALLOT, p != 0, 0);
}
static inline void native_put(uint8_t *part, uint32_t a, uint32_t b, uint32_t epoch) {
    emu_put((uint32_t *)(void *)part, a, b, epoch);
}
static inline void native_get(const uint8_t *part, uint32_t wanted, uint32_t out[3]) {
    emu_get((const uint32_t *)(const void *)part, wanted, out);
}
static inline uint32_t native_clock(void) {
    return emu_clock();
}
static inline void native_give_up(void) {
    emu_give_up("trap");
}

#endif
