/* The CUDA backend: set-up, weights in device memory. */
#include "backend/cuda/pass.h"

#include "base/alloc.h"
#include "base/checked.h"
#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Steps of one launch: enough that a prompt's launches don't count. */
#define MAX_STEPS 256u
#define MAX_KERNELS ((size_t)256 << 20) /* bytes of a file of kernels */

pdvm_status cuda_try(const struct cuda_backend *b, cu_result result, const char *what,
                     pdvm_error *err) {
    return cuda_check(b->cu, result, what, err);
}

pdvm_status cuda_enter(struct cuda_backend *b, pdvm_error *err) {
    return cuda_try(b, b->cu->context_set(b->context), "using the device", err);
}

pdvm_status cuda_alloc(struct cuda_backend *b, uint64_t size, const char *what, cu_address *out,
                       pdvm_error *err) {
    return cuda_memory(b->cu, b->name, size, what,
                       "use smaller values (--values lut4), a sparser model, a shorter context "
                       "(-c), or --backend cpu",
                       out, err);
}

static void cuda_destroy(struct backend *base) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    if (b->retained) {
        b->cu->context_set(b->context);
        for (int i = 0; i < 2; i++)
            if (b->graphs[i].executable) b->cu->graph_exec_destroy(b->graphs[i].executable);
        for (size_t i = 0; i < b->n_events; i++) b->cu->event_destroy(b->events[i]);
        if (b->stream) b->cu->stream_destroy(b->stream);
        if (b->w) b->cu->memory_free(b->w);
        if (b->g) b->cu->memory_free(b->g);
        if (b->host) b->cu->host_free(b->host);
        if (b->module) b->cu->module_unload(b->module);
        b->cu->context_release(b->device);
    }
    gpu_image_free(&b->image);
    free(b->events);
    free(b);
}

static const char *cuda_describe(const struct backend *base) {
    return ((const struct cuda_backend *)base)->description;
}

static pdvm_status cuda_load_matrix(struct backend *base, const struct mdcsr *m,
                                    enum matrix_use use, struct backend_matrix **out,
                                    pdvm_error *err) {
    (void)base;
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a matrix", err));
    (*out)->m = m;
    if (use == MATRIX_LOOKUP) (*out)->bytes = m->values_size + m->index_size;
    return PDVM_OK;
}

static void cuda_free_matrix(struct backend *base, struct backend_matrix *m) {
    (void)base;
    free(m);
}

static size_t cuda_matrix_bytes(const struct backend_matrix *m) {
    return m->bytes;
}

static const struct mdcsr *matrix_of(void *user, const struct phase *phase, int i) {
    (void)user;
    return phase->w[i] ? phase->w[i]->m : NULL;
}

static pdvm_status upload(void *user, uint64_t offset, const void *data, uint64_t size,
                          pdvm_error *err) {
    struct cuda_backend *b = user;
    if (b->notify)
        PD_TRY(pd_progress(b->notify, "packing", (double)offset / (double)b->image.w_size, err));
    return cuda_try(b, b->cu->copy_to_device(b->w + offset, data, (size_t)size),
                    "uploading weights", err);
}

static pdvm_status configure(struct cuda_backend *b, cu_function function, pdvm_error *err) {
    return cuda_try(b,
                    b->cu->function_set_attribute(function,
                                                  CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                  (int)b->shared_bytes),
                    "setting up the kernels", err);
}

/* Whether all blocks run at once, as a launch that synchronises them needs. */
static pdvm_status check_cooperative(struct cuda_backend *b, pdvm_error *err) {
    int blocks = 0;
    if (b->cooperative)
        PD_TRY(cuda_try(b, b->cu->occupancy(&blocks, b->token, (int)b->n_threads, b->shared_bytes),
                        "asking for the occupancy", err));
    b->cooperative = blocks >= 1;
    if (!b->cooperative && b->notify)
        pd_log(b->notify, PDVM_LOG_WARN,
               "%s has no cooperative launches for this model: a token is a graph of its phases "
               "instead of one launch",
               b->name);
    return PDVM_OK;
}

static pdvm_status cuda_prepare(struct backend *base, const struct plan *plan, pdvm_error *err) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    b->plan = plan;
    b->max_steps = plan->max_batch > MAX_STEPS ? plan->max_batch : MAX_STEPS;
    const struct gpu_image_options options = {.n_blocks = b->n_blocks,
                                              .n_warps = b->n_threads / GPU_LANES,
                                              .max_steps = b->max_steps,
                                              .max_logits = plan->max_batch};
    PD_TRY(cuda_enter(b, err));
    PD_TRY(gpu_image_create(plan, matrix_of, NULL, &options, b->threads, &b->image, err));
    b->shared_bytes = gpu_shared_size(&b->image.plan, b->ring);
    if (b->shared_bytes > (uint32_t)b->max_shared)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s: a block has %d bytes of shared memory, this model needs %u", b->name,
                       b->max_shared, b->shared_bytes);
    PD_TRY(configure(b, b->token, err));
    PD_TRY(configure(b, b->phase, err));
    PD_TRY(check_cooperative(b, err));
    PD_TRY(cuda_alloc(b, b->image.w_size, "the model", &b->w, err));
    PD_TRY(cuda_alloc(b, b->image.g_size, "the state of the model", &b->g, err));
    PD_TRY(cuda_try(b, b->cu->memory_set_async(b->g, 0, (size_t)b->image.g_size, b->stream),
                    "clearing memory", err));
    PD_TRY(gpu_image_write(&b->image, b->threads, upload, b, err));
    for (uint32_t i = 0; i < b->image.plan.n_phases; i++) gpu_layout_trim(&b->image.layouts[i]);
    for (size_t i = 0; i < plan->n_phases; i++)
        if (plan->phases[i].kind != PHASE_EMBED && plan->phases[i].w[0])
            plan->phases[i].w[0]->bytes = (size_t)b->image.layouts[i].size;

    size_t logits = (size_t)plan->max_batch * plan->n_vocab * sizeof(float);
    size_t x = plan->hidden_size * sizeof(float);
    b->staging_size = b->max_steps * sizeof(struct cuda_step);
    if (b->staging_size < x) b->staging_size = pd_round_up(x, 16);
    b->host_size = b->staging_size + logits + x + sizeof(struct gpu_result);
    PD_TRY(cuda_try(b, b->cu->host_alloc((void **)&b->host, b->host_size), "allocating host memory",
                    err));
    return cuda_try(b, b->cu->stream_synchronize(b->stream), "preparing", err);
}

static pdvm_status cuda_set_threads(struct backend *base, struct pd_threads *threads,
                                    pdvm_error *err) {
    (void)err;
    ((struct cuda_backend *)base)->threads = threads;
    return PDVM_OK;
}

static const struct backend_ops cuda_ops = {
    .name = "cuda",
    .keeps_matrices = true,
    .destroy = cuda_destroy,
    .describe = cuda_describe,
    .load_matrix = cuda_load_matrix,
    .free_matrix = cuda_free_matrix,
    .matrix_bytes = cuda_matrix_bytes,
    .prepare = cuda_prepare,
    .set_threads = cuda_set_threads,
    .run = cuda_run,
    .can_generate = cuda_can_generate,
    .max_top_k = GPU_BLOCK_TOP, /* every block hands on so many: the best of all are among them */
    .max_stops = GPU_MAX_STOPS,
    .generate = cuda_generate,
    .read_bandwidth = cuda_read_bandwidth,
    .kv_create = cuda_kv_create,
    .kv_free = cuda_kv_free,
    .kv_reserve = cuda_kv_reserve,
    .kv_read = cuda_kv_read,
    .kv_write = cuda_kv_write,
    .kv_bytes = cuda_kv_bytes,
};

static pdvm_status attribute(const struct cuda_backend *b, int which, int *out, pdvm_error *err) {
    return cuda_try(b, b->cu->device_attribute(out, which, b->device), "asking for a property",
                    err);
}

static pdvm_status find_device(struct cuda_backend *b, pdvm_error *err) {
    int major, minor, processors, cooperative, threads;
    PD_TRY(cuda_try(b, b->cu->device_get(&b->device, 0), "finding the device", err));
    PD_TRY(cuda_try(b, b->cu->device_name(b->name, sizeof b->name, b->device),
                    "asking for the device's name", err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, &major, err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, &minor, err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_MULTIPROCESSOR_COUNT, &processors, err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_COOPERATIVE_LAUNCH, &cooperative, err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_MAX_THREADS_PER_BLOCK, &threads, err));
    PD_TRY(attribute(b, CU_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, &b->max_shared, err));
    if (major * 10 + minor < 75)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "%s has compute capability %d.%d: 7.5 or newer is needed", b->name, major,
                       minor);
    b->ring = major >= 9;
    b->cooperative = cooperative != 0;
    b->n_blocks = (uint32_t)processors;
    b->n_threads = GPU_BLOCK_THREADS;
    if (threads < (int)GPU_BLOCK_THREADS)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "%s: blocks of %d threads, %u are needed",
                       b->name, threads, GPU_BLOCK_THREADS);
    snprintf(b->description, sizeof b->description, "cuda (%s)", b->name);
    return PDVM_OK;
}

/* PDVM_CUDA_KERNELS names a file of compiled kernels that is taken instead of the program's own. */
static pdvm_status load_kernels(struct cuda_backend *b, pdvm_error *err) {
    const char *path = getenv("PDVM_CUDA_KERNELS");
    const void *image = cuda_kernels_image();
    char *data = NULL;
    size_t size;
    if (path && *path) {
        PD_TRY(pd_read_file(path, MAX_KERNELS, &data, &size, err));
        image = data;
    }
    pdvm_status status =
        cuda_try(b, b->cu->module_load(&b->module, image), "loading the kernels", err);
    free(data);
    return status;
}

static bool have_kernels(void) {
    const char *path = getenv("PDVM_CUDA_KERNELS");
    return cuda_kernels_image() || (path && *path);
}

static pdvm_status open_device(struct cuda_backend *b, pdvm_error *err) {
    if (!have_kernels())
        return pd_fail(err, PDVM_ERR_UNSUPPORTED,
                       "this build has no GPU kernels: nvcc was not found when it was configured");
    PD_TRY(cuda_driver_load(&b->cu, err));
    PD_TRY(find_device(b, err));
    PD_TRY(cuda_try(b, b->cu->context_retain(&b->context, b->device), "opening the device", err));
    b->retained = true;
    PD_TRY(cuda_enter(b, err));
    PD_TRY(load_kernels(b, err));
    PD_TRY(cuda_try(b, b->cu->module_function(&b->token, b->module, "pdvm_token"),
                    "finding a kernel", err));
    PD_TRY(cuda_try(b, b->cu->module_function(&b->phase, b->module, "pdvm_phase"),
                    "finding a kernel", err));
    return cuda_try(b, b->cu->stream_create(&b->stream, CU_STREAM_NON_BLOCKING), "making a stream",
                    err);
}

pdvm_status cuda_backend_create(const struct backend_options *options, struct backend **out,
                                pdvm_error *err) {
    struct cuda_backend *b;
    PD_TRY(pd_calloc(&b, 1, sizeof *b, "the CUDA backend", err));
    b->base.ops = &cuda_ops;
    b->threads = options->threads;
    b->notify = options->notify;
    pdvm_status status = open_device(b, err);
    size_t available = 0, total = 0;
    if (status == PDVM_OK && options->model_bytes)
        status = cuda_try(b, b->cu->memory_info(&available, &total), "asking for memory", err);
    if (status == PDVM_OK && options->model_bytes > available / 10 * 9)
        status = pd_fail(err, PDVM_ERR_MEMORY,
                         "about %.1f GB of weights do not fit %s, which has "
                         "%.1f GB free",
                         (double)options->model_bytes * 1e-9, b->name, (double)available * 1e-9);
    if (status != PDVM_OK) {
        cuda_destroy(&b->base);
        return status;
    }
    *out = &b->base;
    return PDVM_OK;
}
