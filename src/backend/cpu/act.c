/* Where the integers of an activation vector lie. */
#include "backend/cpu/cpu.h"
#include "base/checked.h"

size_t cpu_act_bytes(size_t cols) {
    size_t n = pd_round_up(cols, BLOCK_COLS);
    return n * (sizeof(int16_t) + 2 * sizeof(int8_t)) + n / BIAS_COLS * sizeof(int32_t);
}

void cpu_act_place(struct cpu_act *act, void *memory, size_t cols) {
    size_t n = pd_round_up(cols, BLOCK_COLS);
    act->q = memory;
    act->high = (int8_t *)(act->q + n);
    act->low = act->high + n;
    act->bias = (int32_t *)(void *)(act->low + n);
}
