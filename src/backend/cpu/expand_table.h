/**
 * The table by which instruction sets without an expand instruction put packed entries at their
 * places: of 8 positions, which of the packed entries each takes.
 */
#ifndef PDVM_BACKEND_CPU_EXPAND_TABLE_H
#define PDVM_BACKEND_CPU_EXPAND_TABLE_H

#include <stdint.h>

/** What byte shuffles take for a position without an entry: they give 0 for it, also after up to 8
 * have been added to it. */
#define EXPAND_NONE 0x80

/** [mask][position]: how many of the mask's bits are before it, or EXPAND_NONE. */
extern const uint8_t cpu_expand_table[256][8];

/** What has to be added to two rows of the table to make a shuffle of 16 bytes: zeros, and eight times
 * the number of entries of the first. */
extern const uint8_t cpu_expand_second[9][16];

#endif
