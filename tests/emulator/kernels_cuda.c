/* The kernels as CUDA C for devices before compute capability 9.0. */
#define PDVM_EMULATE_CUDA 1
#define PDVM_EMULATE_BULK 0
#define EMU_NAME(name) name##_cuda
#include "kernels/pdvm.k"
