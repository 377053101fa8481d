#include "standin/standin.h"

#include "backend/cuda/cublas.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* The functions bear the library's names for the linker and names of this project in the source. */
/* NOLINTBEGIN(bugprone-macro-parentheses) */
#define DECLARE(name, symbol, arguments)                                                           \
    __attribute__((visibility("default"))) cublas_result standin_##name arguments __asm__(symbol);
/* NOLINTEND(bugprone-macro-parentheses) */
CUBLAS_ENTRY_POINTS(DECLARE)
__attribute__((visibility("default"))) void standin_cublas_get_counters(
    struct standin_cublas_counters *out);

enum { NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13 };

struct cublasContext {
    cu_stream stream;
    bool has_workspace;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct standin_cublas_counters counters;

void standin_cublas_get_counters(struct standin_cublas_counters *out) {
    pthread_mutex_lock(&lock);
    *out = counters;
    pthread_mutex_unlock(&lock);
}

static struct {
    pthread_once_t once;
    standin_may_use_fn may_use;
} driver = {.once = PTHREAD_ONCE_INIT};

static void find_driver(void) {
    const char *name = getenv("PDVM_LIBCUDA");
    void *library = name ? dlopen(name, RTLD_NOW | RTLD_NOLOAD) : NULL;
    void *symbol = library ? dlsym(library, STANDIN_MAY_USE) : NULL;
    memcpy(&driver.may_use, &symbol, sizeof symbol);
}

/* Whether that is device memory, and there is a context: the driver's stand-in knows. */
static bool may_use(const void *address, size_t size) {
    pthread_once(&driver.once, find_driver);
    return driver.may_use && driver.may_use((uint64_t)(uintptr_t)address, size);
}

static bool must_fail(void) {
    const char *text = getenv("PDVM_STANDIN_FAIL_CUBLAS");
    if (!text || !*text) return false;
    pthread_mutex_lock(&lock);
    bool fail = counters.products + counters.moments >= strtoull(text, NULL, 10);
    pthread_mutex_unlock(&lock);
    return fail;
}

cublas_result standin_create(cublas_handle *handle) {
    *handle = calloc(1, sizeof **handle);
    if (!*handle) return CUBLAS_ALLOC_FAILED;
    pthread_mutex_lock(&lock);
    counters.handles++;
    pthread_mutex_unlock(&lock);
    return CUBLAS_SUCCESS;
}

cublas_result standin_destroy(cublas_handle handle) {
    if (!handle) return NOT_INITIALIZED;
    free(handle);
    pthread_mutex_lock(&lock);
    counters.handles--;
    pthread_mutex_unlock(&lock);
    return CUBLAS_SUCCESS;
}

cublas_result standin_version(cublas_handle handle, int *version) {
    *version = 120000;
    return handle ? CUBLAS_SUCCESS : NOT_INITIALIZED;
}

cublas_result standin_set_stream(cublas_handle handle, cu_stream stream) {
    if (!handle) return NOT_INITIALIZED;
    handle->stream = stream;
    handle->has_workspace = false; /* as the library does */
    return CUBLAS_SUCCESS;
}

cublas_result standin_set_workspace(cublas_handle handle, void *workspace, size_t bytes) {
    if (!handle) return NOT_INITIALIZED;
    if (!may_use(workspace, bytes)) return INVALID_VALUE;
    handle->has_workspace = true;
    return CUBLAS_SUCCESS;
}

static size_t bytes(int stride, int columns, int rows) {
    return ((size_t)stride * (size_t)(columns - 1) + (size_t)rows) * sizeof(float);
}

cublas_result standin_sgemm(cublas_handle handle, int transpose_a, int transpose_b, int m, int n,
                            int k, const float *alpha, const float *a, int a_stride, const float *b,
                            int b_stride, const float *beta, float *c, int c_stride) {
    if (!handle || !handle->stream || !handle->has_workspace) return NOT_INITIALIZED;
    if (transpose_a != CUBLAS_OP_TRANSPOSED || transpose_b != CUBLAS_OP_PLAIN) return INVALID_VALUE;
    if (m < 1 || n < 1 || k < 1 || a_stride < k || b_stride < k || c_stride < m)
        return INVALID_VALUE;
    if (!may_use(a, bytes(a_stride, m, k)) || !may_use(b, bytes(b_stride, n, k)) ||
        !may_use(c, bytes(c_stride, n, m)))
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    counters.products++;
    pthread_mutex_unlock(&lock);
    if (must_fail()) return EXECUTION_FAILED;
    for (int j = 0; j < n; j++) {
        for (int i = 0; i < m; i++) {
            double sum = 0;
            const float *x = a + (size_t)i * (size_t)a_stride,
                        *y = b + (size_t)j * (size_t)b_stride;
            for (int t = 0; t < k; t++) sum += (double)x[t] * (double)y[t];
            float *to = c + (size_t)j * (size_t)c_stride + i;
            *to = *alpha * (float)sum + (*beta != 0 ? *beta * *to : 0);
        }
    }
    return CUBLAS_SUCCESS;
}

cublas_result standin_ssyrk(cublas_handle handle, int fill, int transpose, int n, int k,
                            const float *alpha, const float *a, int a_stride, const float *beta,
                            float *c, int c_stride) {
    if (!handle || !handle->stream || !handle->has_workspace) return NOT_INITIALIZED;
    if (fill != CUBLAS_FILL_LOWER || transpose != CUBLAS_OP_PLAIN) return INVALID_VALUE;
    if (n < 1 || k < 1 || a_stride < n || c_stride < n) return INVALID_VALUE;
    if (!may_use(a, bytes(a_stride, k, n)) || !may_use(c, bytes(c_stride, n, n)))
        return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    counters.moments++;
    pthread_mutex_unlock(&lock);
    if (must_fail()) return EXECUTION_FAILED;
    for (int j = 0; j < n; j++) {
        for (int i = j; i < n; i++) {
            double sum = 0;
            for (int t = 0; t < k; t++)
                sum += (double)a[(size_t)t * (size_t)a_stride + (size_t)i] *
                       (double)a[(size_t)t * (size_t)a_stride + (size_t)j];
            float *to = c + (size_t)j * (size_t)c_stride + i;
            *to = *alpha * (float)sum + (*beta != 0 ? *beta * *to : 0);
        }
    }
    return CUBLAS_SUCCESS;
}
