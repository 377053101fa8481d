/** Intel's AMX: tiles of 16 x 64 bytes in registers, of Sapphire Rapids and later. */
#ifndef PDVM_BASE_AMX_H
#define PDVM_BASE_AMX_H

#include <stdbool.h>

/** Kinds of products; the values are their bits in CPUID 7, register D. */
enum pd_amx_kind { PD_AMX_BF16 = 22, PD_AMX_INT8 = 25 };

/**
 * Whether this processor forms such products and this system saves the tiles. Linux wants to be
 * asked for them, which this does; false on any other system.
 */
bool pd_amx_supported(enum pd_amx_kind kind);

#endif
