#include "standin/standin.h"

#include "backend/cuda/driver.h"
#include "emulator/emulator.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The functions bear the driver's names for the linker and names of this project in the source. */
/* NOLINTBEGIN(bugprone-macro-parentheses) */
#define DECLARE(name, symbol, arguments)                                                           \
    __attribute__((visibility("default"))) cu_result standin_##name arguments __asm__(symbol);
/* NOLINTEND(bugprone-macro-parentheses) */
CU_ENTRY_POINTS(DECLARE)
__attribute__((visibility("default"))) void standin_get_counters(struct standin_counters *out);
__attribute__((visibility("default"))) bool standin_may_use(uint64_t address, size_t size);

enum {
    INVALID_VALUE = 1,
    INVALID_CONTEXT = 201,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    NOT_FOUND = 500
};

struct CUctx_st {
    int retained;
};
struct CUfunc_st {
    const char *name;
    emu_kernel cuda, bulk; /* before and from compute capability 9.0 on */
    unsigned max_shared;
};
#define N_FUNCTIONS 3
struct CUmod_st {
    struct CUfunc_st functions[N_FUNCTIONS];
};

/* Work that a stream does, or that a graph keeps. */
struct work {
    enum { KERNEL, COPY, SET } kind;
    struct CUfunc_st *function;
    struct emu_grid grid;
    uint64_t arenas[3];
    struct gpu_launch launch;
    void *to;
    const void *from;
    unsigned char value;
    size_t size;
};
struct CUgraph_st {
    struct work *work;
    size_t n;
};
struct CUgraphExec_st {
    struct CUgraph_st graph;
};
struct CUstream_st {
    bool capturing;
    struct CUgraph_st captured;
};
struct CUevent_st {
    struct timespec time;
    bool recorded;
};

struct block {
    struct block *next;
    uint8_t *data;
    size_t size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct CUctx_st the_context;
static const struct CUfunc_st kernels[N_FUNCTIONS] = {
    {"pdvm_token", pdvm_token_cuda, pdvm_token_bulk, 48 << 10},
    {"pdvm_phase", pdvm_phase_cuda, pdvm_phase_bulk, 48 << 10},
    {"pdvm_read", pdvm_read_cuda, pdvm_read_bulk, 48 << 10}};
static struct block *blocks;
static struct standin_counters counters;
static char last_error[256];
static _Thread_local cu_context current;

static uint64_t setting(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoull(text, NULL, 10) : otherwise;
}

static uint64_t memory_size(void) {
    return setting("PDVM_STANDIN_MEMORY", (uint64_t)1 << 30);
}

void standin_get_counters(struct standin_counters *out) {
    pthread_mutex_lock(&lock);
    *out = counters;
    pthread_mutex_unlock(&lock);
}

/* ---- device and context ------------------------------------------------------------------- */

cu_result standin_init(unsigned flags) {
    return flags ? INVALID_VALUE : CU_SUCCESS;
}

cu_result standin_driver_version(int *version) {
    *version = 12000;
    return CU_SUCCESS;
}

cu_result standin_device_count(int *count) {
    *count = (int)setting("PDVM_STANDIN_DEVICES", 1);
    return CU_SUCCESS;
}

cu_result standin_device_get(cu_device *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? CU_SUCCESS : INVALID_VALUE;
}

cu_result standin_device_name(char *name, int size, cu_device device) {
    (void)device;
    snprintf(name, (size_t)size, "stand-in");
    return CU_SUCCESS;
}

cu_result standin_device_attribute(int *value, int attribute, cu_device device) {
    uint64_t capability = setting("PDVM_STANDIN_CAPABILITY", 90);
    (void)device;
    switch (attribute) {
    case CU_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = (int)(capability / 10); break;
    case CU_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = (int)(capability % 10); break;
    case CU_ATTRIBUTE_MULTIPROCESSOR_COUNT:
        *value = (int)setting("PDVM_STANDIN_PROCESSORS", 2);
        break;
    case CU_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
        *value = (int)setting("PDVM_STANDIN_THREADS", 512);
        break;
    case CU_ATTRIBUTE_COOPERATIVE_LAUNCH:
        *value = (int)setting("PDVM_STANDIN_COOPERATIVE", 1);
        break;
    case CU_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = 227 << 10; break;
    case CU_ATTRIBUTE_L2_CACHE_SIZE: *value = 1 << 20; break;
    case CU_ATTRIBUTE_CLOCK_RATE: *value = 1000000; break;
    default: return INVALID_VALUE;
    }
    return CU_SUCCESS;
}

cu_result standin_context_retain(cu_context *context, cu_device device) {
    (void)device;
    pthread_mutex_lock(&lock);
    the_context.retained++;
    pthread_mutex_unlock(&lock);
    *context = &the_context;
    return CU_SUCCESS;
}

cu_result standin_context_release(cu_device device) {
    (void)device;
    pthread_mutex_lock(&lock);
    int left = --the_context.retained;
    bool leak = left == 0 && blocks;
    pthread_mutex_unlock(&lock);
    if (leak) {
        fprintf(stderr, "stand-in: the context is released while memory is in use\n");
        abort();
    }
    return CU_SUCCESS;
}

cu_result standin_context_set(cu_context context) {
    current = context;
    return context == &the_context ? CU_SUCCESS : INVALID_CONTEXT;
}

cu_result standin_context_synchronize(void) {
    return current ? CU_SUCCESS : INVALID_CONTEXT;
}

/* ---- kernels ------------------------------------------------------------------------------ */

cu_result standin_module_load(cu_module *module, const void *image) {
    static const char begin[] = "The stand-in";
    if (!current) return INVALID_CONTEXT;
    if (memcmp(image, begin, sizeof begin - 1) != 0) return INVALID_VALUE;
    cu_module m = malloc(sizeof *m);
    if (!m) return CU_ERROR_OUT_OF_MEMORY;
    memcpy(m->functions, kernels, sizeof kernels);
    *module = m;
    return CU_SUCCESS;
}

cu_result standin_module_unload(cu_module module) {
    free(module);
    return CU_SUCCESS;
}

cu_result standin_module_function(cu_function *function, cu_module module, const char *name) {
    for (size_t i = 0; i < N_FUNCTIONS; i++) {
        if (strcmp(kernels[i].name, name) != 0) continue;
        *function = &module->functions[i];
        return CU_SUCCESS;
    }
    return NOT_FOUND;
}

cu_result standin_function_attribute(int *value, int attribute, cu_function function) {
    (void)function;
    *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 128 : 0;
    return CU_SUCCESS;
}

cu_result standin_function_set_attribute(cu_function function, int attribute, int value) {
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0)
        return INVALID_VALUE;
    if (value > 227 << 10) return INVALID_VALUE;
    function->max_shared = (unsigned)value;
    return CU_SUCCESS;
}

cu_result standin_occupancy(int *n, cu_function function, int block_size, size_t shared_bytes) {
    (void)function;
    *n = block_size <= 1024 && shared_bytes <= (227 << 10) ? 1 : 0;
    return CU_SUCCESS;
}

/* ---- memory ------------------------------------------------------------------------------- */

/* Whether [p, p + size) is inside of one allocation. */
static bool is_device(cu_address p, size_t size) {
    bool found = false;
    pthread_mutex_lock(&lock);
    for (struct block *b = blocks; b && !found; b = b->next) {
        uint64_t begin = (uint64_t)(uintptr_t)b->data;
        found = p >= begin && p - begin <= b->size && size <= b->size - (p - begin);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

bool standin_may_use(uint64_t address, size_t size) {
    return current && is_device(address, size);
}

static void *pointer(cu_address p) {
    return (void *)(uintptr_t)p; /* NOLINT(performance-no-int-to-ptr): what addresses are here */
}

cu_result standin_memory_info(size_t *free_bytes, size_t *total_bytes) {
    if (!current) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    *total_bytes = memory_size();
    *free_bytes = counters.bytes < *total_bytes ? *total_bytes - counters.bytes : 0;
    pthread_mutex_unlock(&lock);
    return CU_SUCCESS;
}

cu_result standin_memory_alloc(cu_address *address, size_t size) {
    struct block *b = malloc(sizeof *b);
    if (!current || size == 0 || !b) {
        free(b);
        return current ? INVALID_VALUE : INVALID_CONTEXT;
    }
    void *data = NULL;
    pthread_mutex_lock(&lock);
    uint64_t total = memory_size();
    bool fits = size <= total && counters.bytes <= total - size;
    if (fits && posix_memalign(&data, 256, size) != 0) fits = false;
    if (fits) {
        memset(data, 0xa5, size); /* what happens to be there */
        *b = (struct block){blocks, data, size};
        blocks = b;
        counters.bytes += size;
        counters.allocations++;
        *address = (uint64_t)(uintptr_t)data;
    }
    pthread_mutex_unlock(&lock);
    if (fits) return CU_SUCCESS;
    free(b);
    return CU_ERROR_OUT_OF_MEMORY;
}

cu_result standin_memory_free(cu_address address) {
    cu_result result = INVALID_VALUE;
    if (!current) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks; *at; at = &(*at)->next) {
        struct block *b = *at;
        if (pointer(address) != b->data) continue;
        *at = b->next;
        counters.bytes -= b->size;
        free(b->data);
        free(b);
        result = CU_SUCCESS;
        break;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

cu_result standin_host_alloc(void **address, size_t size) {
    if (!current) return INVALID_CONTEXT;
    *address = malloc(size);
    return *address ? CU_SUCCESS : CU_ERROR_OUT_OF_MEMORY;
}

cu_result standin_host_free(void *address) {
    free(address);
    return CU_SUCCESS;
}

/* ---- streams and graphs ------------------------------------------------------------------- */

static cu_result run_kernel(const struct work *w) {
    const char *wrong = emu_launch(
        setting("PDVM_STANDIN_CAPABILITY", 90) >= 90 ? w->function->bulk : w->function->cuda,
        pointer(w->arenas[0]), pointer(w->arenas[1]), pointer(w->arenas[2]), &w->launch, &w->grid);
    if (!wrong) return CU_SUCCESS;
    snprintf(last_error, sizeof last_error, "%s: %s", w->function->name, wrong);
    return LAUNCH_FAILED;
}

static cu_result run_work(const struct work *w) {
    if (w->kind == KERNEL) return run_kernel(w);
    if (w->kind == COPY && w->size) memmove(w->to, w->from, w->size);
    if (w->kind == SET && w->size) memset(w->to, w->value, w->size);
    return CU_SUCCESS;
}

/* A stream does everything at once, unless it captures. */
static cu_result submit(cu_stream stream, const struct work *w) {
    if (!current) return INVALID_CONTEXT;
    if (!stream || !stream->capturing) return run_work(w);
    struct CUgraph_st *g = &stream->captured;
    struct work *more = realloc(g->work, (g->n + 1) * sizeof *more);
    if (!more) return CU_ERROR_OUT_OF_MEMORY;
    g->work = more;
    g->work[g->n++] = *w;
    return CU_SUCCESS;
}

cu_result standin_copy_to_device_async(cu_address to, const void *from, size_t size,
                                       cu_stream stream) {
    if (!is_device(to, size)) return INVALID_VALUE;
    const struct work w = {.kind = COPY, .to = pointer(to), .from = from, .size = size};
    return submit(stream, &w);
}

cu_result standin_copy_to_host_async(void *to, cu_address from, size_t size, cu_stream stream) {
    if (!is_device(from, size)) return INVALID_VALUE;
    const struct work w = {.kind = COPY, .to = to, .from = pointer(from), .size = size};
    pthread_mutex_lock(&lock);
    counters.bytes_back += size;
    pthread_mutex_unlock(&lock);
    return submit(stream, &w);
}

cu_result standin_copy_to_device(cu_address to, const void *from, size_t size) {
    return standin_copy_to_device_async(to, from, size, NULL);
}

cu_result standin_copy_to_host(void *to, cu_address from, size_t size) {
    return standin_copy_to_host_async(to, from, size, NULL);
}

cu_result standin_copy_on_device_async(cu_address to, cu_address from, size_t size,
                                       cu_stream stream) {
    if (!is_device(from, size) || !is_device(to, size)) return INVALID_VALUE;
    const struct work w = {.kind = COPY, .to = pointer(to), .from = pointer(from), .size = size};
    return submit(stream, &w);
}

cu_result standin_memory_set_async(cu_address to, unsigned char value, size_t size,
                                   cu_stream stream) {
    if (!is_device(to, size)) return INVALID_VALUE;
    const struct work w = {.kind = SET, .to = pointer(to), .value = value, .size = size};
    return submit(stream, &w);
}

cu_result standin_stream_create(cu_stream *stream, unsigned flags) {
    (void)flags;
    if (!current) return INVALID_CONTEXT;
    *stream = calloc(1, sizeof **stream);
    return *stream ? CU_SUCCESS : CU_ERROR_OUT_OF_MEMORY;
}

cu_result standin_stream_destroy(cu_stream stream) {
    free(stream->captured.work);
    free(stream);
    return CU_SUCCESS;
}

cu_result standin_stream_synchronize(cu_stream stream) {
    if (!current) return INVALID_CONTEXT;
    return stream->capturing ? INVALID_VALUE : CU_SUCCESS;
}

cu_result standin_stream_begin_capture(cu_stream stream, int mode) {
    (void)mode;
    if (stream->capturing) return INVALID_VALUE;
    stream->capturing = true;
    stream->captured = (struct CUgraph_st){0};
    return CU_SUCCESS;
}

cu_result standin_stream_end_capture(cu_stream stream, cu_graph *graph) {
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = false;
    *graph = malloc(sizeof **graph);
    if (!*graph) return CU_ERROR_OUT_OF_MEMORY;
    **graph = stream->captured;
    stream->captured = (struct CUgraph_st){0};
    return CU_SUCCESS;
}

cu_result standin_graph_instantiate(cu_graph_exec *out, cu_graph graph, unsigned long long flags) {
    (void)flags;
    cu_graph_exec e = malloc(sizeof *e);
    struct work *work = calloc(graph->n + 1, sizeof *work);
    if (!e || !work) {
        free(e);
        free(work);
        return CU_ERROR_OUT_OF_MEMORY;
    }
    if (graph->n) memcpy(work, graph->work, graph->n * sizeof *work);
    e->graph = (struct CUgraph_st){work, graph->n};
    *out = e;
    return CU_SUCCESS;
}

cu_result standin_graph_launch(cu_graph_exec e, cu_stream stream) {
    cu_result result = stream->capturing ? INVALID_VALUE : CU_SUCCESS;
    pthread_mutex_lock(&lock);
    counters.graphs++;
    for (size_t i = 0; i < e->graph.n; i++) counters.nodes += e->graph.work[i].kind == KERNEL;
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < e->graph.n && result == CU_SUCCESS; i++)
        result = submit(stream, &e->graph.work[i]);
    return result;
}

cu_result standin_graph_exec_destroy(cu_graph_exec e) {
    free(e->graph.work);
    free(e);
    return CU_SUCCESS;
}

cu_result standin_graph_destroy(cu_graph graph) {
    free(graph->work);
    free(graph);
    return CU_SUCCESS;
}

/* ---- events ------------------------------------------------------------------------------- */

cu_result standin_event_create(cu_event *event, unsigned flags) {
    (void)flags;
    *event = calloc(1, sizeof **event);
    return *event ? CU_SUCCESS : CU_ERROR_OUT_OF_MEMORY;
}

cu_result standin_event_destroy(cu_event event) {
    free(event);
    return CU_SUCCESS;
}

cu_result standin_event_record(cu_event event, cu_stream stream) {
    if (stream->capturing) return INVALID_VALUE;
    clock_gettime(CLOCK_MONOTONIC, &event->time);
    event->recorded = true;
    return CU_SUCCESS;
}

cu_result standin_event_elapsed(float *milliseconds, cu_event begin, cu_event end) {
    if (!begin->recorded || !end->recorded) return INVALID_VALUE;
    double seconds = (double)(end->time.tv_sec - begin->time.tv_sec) +
                     1e-9 * (double)(end->time.tv_nsec - begin->time.tv_nsec);
    *milliseconds = (float)(1e3 * seconds);
    return CU_SUCCESS;
}

/* ---- launches ----------------------------------------------------------------------------- */

static cu_result launch(cu_function function, unsigned n_blocks, unsigned n_threads,
                        unsigned shared_bytes, cu_stream stream, void **arguments) {
    struct work w = {
        .kind = KERNEL,
        .function = function,
        .grid = {
            .n_blocks = n_blocks, .n_threads = n_threads, .shared_bytes = shared_bytes, .seed = 1}};
    if (n_blocks == 0 || n_threads % 32 || n_threads > 512 || shared_bytes > function->max_shared)
        return INVALID_VALUE;
    for (int i = 0; i < 3; i++) memcpy(&w.arenas[i], arguments[i], sizeof w.arenas[i]);
    memcpy(&w.launch, arguments[3], sizeof w.launch);
    if (!is_device(w.arenas[0], 1) || !is_device(w.arenas[1], 1)) return ILLEGAL_ADDRESS;
    pthread_mutex_lock(&lock);
    if (!stream->capturing) counters.launches++;
    uint64_t number = counters.launches + counters.graphs;
    pthread_mutex_unlock(&lock);
    if (number >= setting("PDVM_STANDIN_FAIL_LAUNCH", UINT64_MAX)) return LAUNCH_FAILED;
    return submit(stream, &w);
}

cu_result standin_launch(cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                         unsigned block_x, unsigned block_y, unsigned block_z,
                         unsigned shared_bytes, cu_stream stream, void **arguments, void **extra) {
    if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || extra) return INVALID_VALUE;
    return launch(function, grid_x, block_x, shared_bytes, stream, arguments);
}

cu_result standin_launch_cooperative(cu_function function, unsigned grid_x, unsigned grid_y,
                                     unsigned grid_z, unsigned block_x, unsigned block_y,
                                     unsigned block_z, unsigned shared_bytes, cu_stream stream,
                                     void **arguments) {
    if (!setting("PDVM_STANDIN_COOPERATIVE", 1)) return NOT_SUPPORTED;
    if (grid_x > setting("PDVM_STANDIN_PROCESSORS", 2))
        return CU_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE;
    pthread_mutex_lock(&lock);
    counters.cooperative++;
    pthread_mutex_unlock(&lock);
    return standin_launch(function, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes,
                          stream, arguments, NULL);
}

cu_result standin_error_string(cu_result error, const char **text) {
    *text = error == CU_SUCCESS               ? "no error"
            : error == CU_ERROR_OUT_OF_MEMORY ? "out of memory"
            : error == INVALID_CONTEXT        ? "invalid device context"
            : error == LAUNCH_FAILED          ? (*last_error ? last_error : "launch failed")
            : error == NOT_SUPPORTED          ? "not supported"
                                              : "invalid argument";
    return CU_SUCCESS;
}
