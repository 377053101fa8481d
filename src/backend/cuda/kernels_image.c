/* The compiled kernels inside the program. */
#include "backend/cuda/cuda.h"

#ifdef PDVM_CUDA_FATBIN
__asm__(".section .rodata\n"
        ".balign 64\n"
        "pdvm_cuda_fatbin:\n"
        ".incbin \"" PDVM_CUDA_FATBIN "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const unsigned char pdvm_cuda_fatbin[] __attribute__((visibility("hidden")));

const void *cuda_kernels_image(void) {
    return pdvm_cuda_fatbin;
}
#else
const void *cuda_kernels_image(void) {
    return NULL;
}
#endif
