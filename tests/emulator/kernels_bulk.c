/* The kernels as CUDA C for compute capability 9.0 and above. */
#define PDVM_EMULATE_CUDA 1
#define PDVM_EMULATE_BULK 1
#define EMU_NAME(name) name##_bulk
#include "kernels/pdvm.k"
