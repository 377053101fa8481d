/* The kernels as plain C. */
#define EMU_NAME(name) name##_c
#include "kernels/pdvm.k"
