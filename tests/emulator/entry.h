/** How the emulator enters a kernel, whatever dialect it is compiled in. */
#ifndef PDVM_TESTS_ENTRY_H
#define PDVM_TESTS_ENTRY_H

#include "emulator/emulator.h"

#define KERNEL(name)                                                                               \
    void EMU_NAME(name)(const uint8_t *w, uint8_t *g, uint8_t *k, const struct gpu_launch p)
#define KERNEL_CTX                                                                                 \
    const struct emu_self *self = emu_self();                                                      \
    struct Ctx ctx = {w,                                                                           \
                      g,                                                                           \
                      k,                                                                           \
                      self->shared,                                                                \
                      self->block,                                                                 \
                      self->n_blocks,                                                              \
                      self->thread,                                                                \
                      self->n_threads,                                                             \
                      self->thread % 32,                                                           \
                      self->thread / 32,                                                           \
                      self->n_threads / 32}

#endif
