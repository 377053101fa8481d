#include "base/alloc.h"

#include "base/checked.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Below this a system call costs more than the memory is worth. */
#define LAZY_ZERO ((size_t)1 << 20)

pdvm_status pd_calloc(void *out, size_t n, size_t size, const char *what, pdvm_error *err) {
    void *p = calloc(n ? n : 1, size ? size : 1);
    memcpy(out, &p, sizeof p);
    if (p) return PDVM_OK;
    size_t total;
    return pd_fail_memory(err, pd_mul_size(n, size, &total) ? total : SIZE_MAX, what);
}

pdvm_status pd_alloc_aligned(void *out, size_t size, const char *what, pdvm_error *err) {
    void *p = NULL;
    size_t padded;
    if (pd_add_size(size, 128, &padded)) p = aligned_alloc(128, pd_round_up(padded, 128));
    memcpy(out, &p, sizeof p);
    return p ? PDVM_OK : pd_fail_memory(err, size, what);
}

void pd_zero(void *data, size_t size) {
    uint8_t *begin = data, *end = begin + size;
#ifdef __linux__
    /* Elsewhere MADV_DONTNEED does not promise zeros. */
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uint8_t *first = begin + ((page - (uintptr_t)begin % page) % page);
    if (size >= LAZY_ZERO && first < end) {
        size_t whole = (size_t)(end - first) / page * page;
        if (madvise(first, whole, MADV_DONTNEED) == 0) {
            memset(begin, 0, (size_t)(first - begin));
            begin = first + whole;
        }
    }
#endif
    memset(begin, 0, (size_t)(end - begin));
}

pdvm_status pd_grow(void *data, size_t *capacity, size_t need, size_t size, const char *what,
                    pdvm_error *err) {
    if (need <= *capacity) return PDVM_OK;
    void *old;
    memcpy(&old, data, sizeof old);
    size_t n = *capacity < 16 ? 16 : *capacity;
    while (n < need && n <= SIZE_MAX / 2) n *= 2;
    if (n < need) n = need;
    size_t bytes;
    if (!pd_mul_size(n, size, &bytes)) return pd_fail_memory(err, SIZE_MAX, what);
    void *p = realloc(old, bytes);
    if (!p) return pd_fail_memory(err, bytes, what);
    memcpy(data, &p, sizeof p);
    *capacity = n;
    return PDVM_OK;
}
