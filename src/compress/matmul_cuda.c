/*
 * Products on an NVIDIA GPU by cuBLAS, in float32 throughout: cuBLAS's default for float32 takes no
 * shorter format. Workers have lanes, each with a stream, a handle and page-locked memory through which
 * windows come and go: while one lane's rows are multiplied, others are copied. All lanes are alike
 * and pieces have fixed sizes, so it makes no difference which one computes what.
 */
#include "compress/matmul_device.h"

#include "backend/cuda/cublas.h"
#include "base/alloc.h"
#include "compress/matmul.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LANES 16
#define LANE_BYTES ((int64_t)16 << 20)     /* most that goes in, and comes out, at a time */
#define WORKSPACE_BYTES ((int64_t)8 << 20) /* cuBLAS's own, per lane */
#define WINDOWS_BYTES ((int64_t)1 << 30)   /* most windows whose moments are added up in float32 */
#define WIDEST ((int64_t)1 << 20)          /* columns: keeps all sizes below far from overflows */
#define LEAST_ROWS ((int64_t)128)          /* solvers multiply so many at a time */
#define ALIGNMENT ((int64_t)256)
#define ADD_ROWS ((int64_t)64)

struct lane {
    pthread_mutex_t mutex;
    bool has_mutex;
    cu_stream stream;
    cublas_handle handle;
    cu_address workspace, in, out;
    char *host_in, *host_out;
};

struct cuda_products {
    struct matmul_device base;
    const struct cuda_driver *cu;
    const struct cublas *blas;
    char device_name[96];
    cu_device device;
    cu_context context;
    bool retained;
    struct lane lanes[MOST_LANES];
    int n_lanes;
    int64_t in_bytes, out_bytes; /* of a lane */
    cu_address memory;           /* all of the following, and the lanes' */
    cu_address loaded, windows, moments;
    int64_t loaded_bytes, loaded_used;
    pthread_mutex_t mutex; /* of what follows */
    bool failed;
    pdvm_status status;
    pdvm_error error;
};

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* ---- failures -------------------------------------------------------------------------- */

static pdvm_status get_status(struct matmul_device *base, pdvm_error *err) {
    struct cuda_products *d = (struct cuda_products *)base;
    pthread_mutex_lock(&d->mutex);
    pdvm_status status = d->failed ? d->status : PDVM_OK;
    if (status != PDVM_OK && err) *err = d->error;
    pthread_mutex_unlock(&d->mutex);
    return status;
}

static void remember(struct cuda_products *d, pdvm_status status, const pdvm_error *err) {
    if (status == PDVM_OK) return;
    pthread_mutex_lock(&d->mutex);
    if (!d->failed) {
        d->failed = true;
        d->status = status;
        d->error = *err;
    }
    pthread_mutex_unlock(&d->mutex);
}

/* ---- lanes ----------------------------------------------------------------------------- */

static pdvm_status enter_lane(struct cuda_products *d, int64_t worker, struct lane **out,
                              pdvm_error *err) {
    *out = &d->lanes[worker % d->n_lanes];
    pthread_mutex_lock(&(*out)->mutex);
    return cuda_check(d->cu, d->cu->context_set(d->context), "using the device", err);
}

static void leave_lane(struct lane *l) {
    pthread_mutex_unlock(&l->mutex);
}

static pdvm_status wait_for(struct cuda_products *d, struct lane *l, const char *what,
                            pdvm_error *err) {
    return cuda_check(d->cu, d->cu->stream_synchronize(l->stream), what, err);
}

/* Rows of x, `stride` apart, to a matrix on the device whose rows follow one another. */
static pdvm_status send(struct cuda_products *d, struct lane *l, const float *x, int64_t stride,
                        int64_t rows, int64_t cols, cu_address to, pdvm_error *err) {
    int64_t size = cols * (int64_t)sizeof *x, step = d->in_bytes / size;
    for (int64_t row = 0; row < rows; row += step) {
        int64_t n = smaller(rows - row, step);
        if (row > 0) PD_TRY(wait_for(d, l, "copying to the device", err));
        if (stride == cols)
            memcpy(l->host_in, x + row * stride, (size_t)(n * size));
        else
            for (int64_t i = 0; i < n; i++)
                memcpy(l->host_in + i * size, x + (row + i) * stride, (size_t)size);
        PD_TRY(cuda_check(d->cu,
                          d->cu->copy_to_device_async(to + (cu_address)(row * size), l->host_in,
                                                      (size_t)(n * size), l->stream),
                          "copying to the device", err));
    }
    return PDVM_OK;
}

static pdvm_status fetch(struct cuda_products *d, struct lane *l, cu_address from, int64_t size,
                         pdvm_error *err) {
    PD_TRY(cuda_check(d->cu, d->cu->copy_to_host_async(l->host_out, from, (size_t)size, l->stream),
                      "copying from the device", err));
    return wait_for(d, l, "a product", err);
}

/* ---- loaded matrices ------------------------------------------------------------------- */

static int64_t aligned(int64_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static pdvm_status load(struct matmul_device *base, const struct matmul_task *t, uint64_t *out,
                        pdvm_error *err) {
    struct cuda_products *d = (struct cuda_products *)base;
    struct lane *l;
    *out = 0;
    if (t->transposed || t->k > WIDEST || t->n > WIDEST) return PDVM_OK;
    int64_t bytes = aligned(t->n * t->k * (int64_t)sizeof(float));
    if (bytes > d->loaded_bytes - d->loaded_used || t->k * (int64_t)sizeof(float) > d->in_bytes)
        return PDVM_OK;
    cu_address to = d->loaded + (cu_address)d->loaded_used;
    pdvm_status status = enter_lane(d, 0, &l, err);
    if (status == PDVM_OK) status = send(d, l, t->b, t->b_stride, t->n, t->k, to, err);
    if (status == PDVM_OK) status = wait_for(d, l, "copying to the device", err);
    leave_lane(l);
    PD_TRY(status);
    d->loaded_used += bytes;
    *out = to;
    return PDVM_OK;
}

static void unload(struct matmul_device *base, uint64_t loaded) {
    struct cuda_products *d = (struct cuda_products *)base;
    if (loaded) d->loaded_used = (int64_t)(loaded - d->loaded);
}

/* ---- products -------------------------------------------------------------------------- */

/* c's rows of m x n numbers, from where the device's copy of them came to. */
static void put(const struct matmul_task *t, const float *from, int64_t first, int64_t rows) {
    for (int64_t i = 0; i < rows; i++, from += t->n) {
        float *c = t->c + (first + i) * t->c_stride;
        if (t->add)
            for (int64_t j = 0; j < t->n; j++) c[j] += from[j];
        else
            memcpy(c, from, (size_t)t->n * sizeof *c);
    }
}

/* Rows [first, first + rows) of all products. */
static pdvm_status multiply(struct cuda_products *d, struct lane *l,
                            const struct matmul_task *tasks, int n, int64_t first, int64_t rows,
                            pdvm_error *err) {
    const float one = 1, zero = 0;
    int64_t done = 0;
    PD_TRY(send(d, l, tasks->a + first * tasks->a_stride, tasks->a_stride, rows, tasks->k, l->in,
                err));
    for (int i = 0; i < n; i++) {
        const struct matmul_task *t = &tasks[i];
        float *to = cublas_floats(l->out + (cu_address)done * sizeof(float));
        /* Row-major C = A B^T is column-major C^T = B A^T. */
        PD_TRY(cublas_check(d->blas->sgemm(l->handle, CUBLAS_OP_TRANSPOSED, CUBLAS_OP_PLAIN,
                                           (int)t->n, (int)rows, (int)t->k, &one,
                                           cublas_floats(t->ready->on_device), (int)t->k,
                                           cublas_floats(l->in), (int)t->k, &zero, to, (int)t->n),
                            "a product", err));
        done += rows * t->n;
    }
    PD_TRY(fetch(d, l, l->out, done * (int64_t)sizeof(float), err));
    const float *from = (const float *)(const void *)l->host_out;
    for (int i = 0; i < n; i++) {
        put(&tasks[i], from, first, rows);
        from += rows * tasks[i].n;
    }
    return PDVM_OK;
}

static void products(struct matmul_device *base, const struct matmul_task *tasks, int n,
                     int worker) {
    struct cuda_products *d = (struct cuda_products *)base;
    struct lane *l;
    pdvm_error err;
    if (n < 1) return;
    int64_t in = tasks->k * (int64_t)sizeof(float), out = 0;
    for (int i = 0; i < n; i++) out += tasks[i].n * (int64_t)sizeof(float);
    if (in < 1 || out < 1) return;
    int64_t step = smaller(d->in_bytes / in, d->out_bytes / out);
    pdvm_status status = get_status(base, &err);
    if (status != PDVM_OK) return;
    if (step < 1) {
        status = pd_fail(&err, PDVM_ERR_UNSUPPORTED, "a product is too wide for the device");
        remember(d, status, &err);
        return;
    }
    status = enter_lane(d, worker, &l, &err);
    for (int64_t row = 0; row < tasks->m && status == PDVM_OK; row += step)
        status = multiply(d, l, tasks, n, row, smaller(tasks->m - row, step), &err);
    leave_lane(l);
    remember(d, status, &err);
}

/* ---- moments --------------------------------------------------------------------------- */

/* Windows of so many columns that are on the device together: a power of two. */
static int64_t windows_at_once(int64_t seq, int64_t cols) {
    int64_t n = MATMUL_DEVICE_WINDOWS;
    while (n > 1 && n * seq * cols * (int64_t)sizeof(float) > WINDOWS_BYTES) n /= 2;
    return n;
}

struct gram_run {
    struct cuda_products *d;
    const float *x;
    int64_t seq, cols;
    double *h;
};

static void send_windows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct gram_run *r = arg;
    struct cuda_products *d = r->d;
    struct lane *l;
    pdvm_error err;
    pdvm_status status = enter_lane(d, worker, &l, &err);
    for (int64_t i = begin; i < end && status == PDVM_OK; i++) {
        int64_t at = i * r->seq * r->cols;
        status = send(d, l, r->x + at, r->cols, r->seq, r->cols,
                      d->windows + (cu_address)at * sizeof(float), &err);
        if (status == PDVM_OK) status = wait_for(d, l, "copying to the device", &err);
    }
    leave_lane(l);
    remember(d, status, &err);
}

static pdvm_status add_up(const struct gram_run *r, int64_t n, pdvm_error *err) {
    struct cuda_products *d = r->d;
    const float one = 1, zero = 0;
    struct lane *l;
    pdvm_status status = enter_lane(d, 0, &l, err);
    for (int64_t i = 0; i < n && status == PDVM_OK; i++) {
        cu_address x = d->windows + (cu_address)(i * r->seq * r->cols) * sizeof(float);
        /* The lower half of a column-major matrix is the upper one of it by rows. */
        status =
            cublas_check(d->blas->ssyrk(l->handle, CUBLAS_FILL_LOWER, CUBLAS_OP_PLAIN, (int)r->cols,
                                        (int)r->seq, &one, cublas_floats(x), (int)r->cols,
                                        i ? &one : &zero, cublas_floats(d->moments), (int)r->cols),
                         "moments", err);
    }
    if (status == PDVM_OK) status = wait_for(d, l, "moments", err);
    leave_lane(l);
    return status;
}

static void add_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const struct gram_run *r = arg;
    struct cuda_products *d = r->d;
    struct lane *l;
    pdvm_error err;
    int64_t size = r->cols * (int64_t)sizeof(float), step = d->out_bytes / size;
    pdvm_status status = enter_lane(d, worker, &l, &err);
    for (int64_t row = begin; row < end && status == PDVM_OK; row += step) {
        int64_t n = smaller(end - row, step);
        status = fetch(d, l, d->moments + (cu_address)(row * size), n * size, &err);
        if (status != PDVM_OK) break;
        const float *from = (const float *)(const void *)l->host_out;
        for (int64_t i = 0; i < n; i++) {
            double *h = r->h + (row + i) * r->cols;
            for (int64_t j = row + i; j < r->cols; j++) h[j] += (double)from[i * r->cols + j];
        }
    }
    leave_lane(l);
    remember(d, status, &err);
}

static pdvm_status gram(struct matmul_device *base, const float *x, int64_t n, int64_t seq,
                        int64_t cols, struct pd_threads *threads, double *h, pdvm_error *err) {
    struct cuda_products *d = (struct cuda_products *)base;
    int64_t most = windows_at_once(seq, cols);
    for (int64_t first = 0; first < n; first += most) {
        struct gram_run r = {d, x + first * seq * cols, seq, cols, h};
        int64_t windows = smaller(n - first, most);
        pd_threads_for(threads, windows, 1, send_windows, &r);
        PD_TRY(get_status(base, err));
        PD_TRY(add_up(&r, windows, err));
        pd_threads_for(threads, cols, ADD_ROWS, add_rows, &r);
        PD_TRY(get_status(base, err));
    }
    return PDVM_OK;
}

/* ---- setting up ------------------------------------------------------------------------ */

static void free_lane(struct cuda_products *d, struct lane *l) {
    if (l->handle) d->blas->destroy(l->handle);
    if (l->stream) d->cu->stream_destroy(l->stream);
    if (l->host_in) d->cu->host_free(l->host_in);
    if (l->host_out) d->cu->host_free(l->host_out);
    if (l->has_mutex) pthread_mutex_destroy(&l->mutex);
}

static void destroy(struct matmul_device *base) {
    struct cuda_products *d = (struct cuda_products *)base;
    if (d->retained) {
        d->cu->context_set(d->context);
        for (int i = 0; i < d->n_lanes; i++) free_lane(d, &d->lanes[i]);
        if (d->memory) d->cu->memory_free(d->memory);
        d->cu->context_release(d->device);
    }
    pthread_mutex_destroy(&d->mutex);
    free(d);
}

static pdvm_status host_memory(struct cuda_products *d, int64_t size, char **out, pdvm_error *err) {
    void *address = NULL;
    cu_result result = d->cu->host_alloc(&address, (size_t)size);
    *out = result == CU_SUCCESS ? address : NULL;
    return cuda_check(d->cu, result, "allocating page-locked memory", err);
}

static pdvm_status create_lane(struct cuda_products *d, struct lane *l, pdvm_error *err) {
    if (pthread_mutex_init(&l->mutex, NULL) != 0) return pd_fail_memory(err, 0, "a mutex");
    l->has_mutex = true;
    PD_TRY(cuda_check(d->cu, d->cu->stream_create(&l->stream, CU_STREAM_NON_BLOCKING),
                      "creating a stream", err));
    PD_TRY(host_memory(d, d->in_bytes, &l->host_in, err));
    PD_TRY(host_memory(d, d->out_bytes, &l->host_out, err));
    PD_TRY(cublas_check(d->blas->create(&l->handle), "starting", err));
    PD_TRY(cublas_check(d->blas->set_stream(l->handle, l->stream), "setting the stream", err));
    return cublas_check(
        d->blas->set_workspace(l->handle, cublas_floats(l->workspace), (size_t)WORKSPACE_BYTES),
        "setting the workspace", err);
}

/* Most bytes of windows that are on the device together, whatever their columns. */
static int64_t windows_bytes(const struct matmul_device_size *size) {
    int64_t one = size->seq * size->widest * 4;
    return larger(one, smaller(MATMUL_DEVICE_WINDOWS * one, WINDOWS_BYTES));
}

static cu_address take(cu_address *at, int64_t bytes) {
    cu_address taken = *at;
    *at += (cu_address)aligned(bytes);
    return taken;
}

/* Where everything lies, from `at` on; returns the end. */
static cu_address lay_out(struct cuda_products *d, const struct matmul_device_size *size,
                          int n_lanes, cu_address at) {
    d->loaded = take(&at, size->loaded);
    d->windows = take(&at, size->gram ? windows_bytes(size) : 0);
    d->moments = take(&at, size->gram ? size->widest * size->widest * 4 : 0);
    for (int i = 0; i < n_lanes; i++) {
        d->lanes[i].workspace = take(&at, WORKSPACE_BYTES);
        d->lanes[i].in = take(&at, d->in_bytes);
        d->lanes[i].out = take(&at, d->out_bytes);
    }
    return at;
}

static pdvm_status allocate(struct cuda_products *d, const struct matmul_device_size *size,
                            int n_lanes, pdvm_error *err) {
    PD_TRY(cuda_memory(d->cu, d->device_name, lay_out(d, size, n_lanes, 0), "calibration",
                       "use --backend cpu, or fewer threads", &d->memory, err));
    d->loaded_bytes = size->loaded;
    lay_out(d, size, n_lanes, d->memory);
    return PDVM_OK;
}

static pdvm_status create(struct cuda_products *d, const struct matmul_device_size *size,
                          int n_workers, pdvm_error *err) {
    int64_t rows = larger(size->seq, LEAST_ROWS);
    int version = 0;
    if (size->widest > WIDEST || size->outputs > 4 * WIDEST || size->seq > WIDEST)
        return pd_fail(err, PDVM_ERR_UNSUPPORTED, "the model is too wide for calibration on a GPU");
    PD_TRY(cuda_driver_load(&d->cu, err));
    PD_TRY(cublas_load(&d->blas, err));
    PD_TRY(cuda_check(d->cu, d->cu->device_get(&d->device, 0), "opening the device", err));
    PD_TRY(cuda_check(d->cu, d->cu->device_name(d->device_name, sizeof d->device_name, d->device),
                      "asking for the name", err));
    PD_TRY(
        cuda_check(d->cu, d->cu->context_retain(&d->context, d->device), "using the device", err));
    d->retained = true;
    PD_TRY(cuda_check(d->cu, d->cu->context_set(d->context), "using the device", err));
    d->in_bytes = smaller(rows * size->widest * 4, LANE_BYTES);
    d->out_bytes = smaller(rows * larger(size->outputs, size->widest) * 4, LANE_BYTES);
    PD_TRY(allocate(d, size, (int)smaller(n_workers, MOST_LANES), err));
    for (int i = 0; i < n_workers && i < MOST_LANES; i++) {
        d->n_lanes = i + 1;
        PD_TRY(create_lane(d, &d->lanes[i], err));
    }
    PD_TRY(cublas_check(d->blas->version(d->lanes[0].handle, &version), "asking for the version",
                        err));
    snprintf(d->base.name, sizeof d->base.name, "cuBLAS %d on %s", version, d->device_name);
    return PDVM_OK;
}

static const struct matmul_device_ops ops = {.destroy = destroy,
                                             .load = load,
                                             .unload = unload,
                                             .products = products,
                                             .gram = gram,
                                             .status = get_status};

pdvm_status matmul_cuda_create(const struct matmul_device_size *size, int n_workers,
                               struct matmul_device **out, pdvm_error *err) {
    struct cuda_products *d;
    *out = NULL;
    PD_TRY(pd_calloc(&d, 1, sizeof *d, "products on a GPU", err));
    d->base.ops = &ops;
    if (pthread_mutex_init(&d->mutex, NULL) != 0) {
        free(d);
        return pd_fail_memory(err, 0, "a mutex");
    }
    pdvm_status status = create(d, size, n_workers, err);
    if (status == PDVM_OK)
        *out = &d->base;
    else
        destroy(&d->base);
    return status;
}
