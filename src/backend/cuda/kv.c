/* The KV cache in device memory. */
#include "backend/cuda/cuda.h"

#include "base/alloc.h"
#include "base/checked.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 1024u
#define LEAST_SLOTS 256u

pdvm_status cuda_kv_create(struct backend *base, const struct kv_shape *shape,
                           struct backend_kv **out, pdvm_error *err) {
    (void)base;
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a KV cache", err));
    (*out)->shape = *shape;
    return PDVM_OK;
}

void cuda_kv_free(struct backend *base, struct backend_kv *kv) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    if (!kv) return;
    if (kv->memory && cuda_enter(b, NULL) == PDVM_OK) b->cu->memory_free(kv->memory);
    free(kv);
}

/* One plane of a cache: rows of keys or values, or their scales, of all layers and heads. */
struct plane {
    uint64_t offset;
    uint64_t pitch;
};

static int planes_of(const struct gpu_kv *kv, struct plane out[4]) {
    int n = 0;
    out[n++] = (struct plane){kv->k, kv->pitch_k};
    out[n++] = (struct plane){kv->v, kv->pitch_v};
    if (kv->type_k == GPU_KV_INT8) out[n++] = (struct plane){kv->k_scales, sizeof(float)};
    if (kv->type_v == GPU_KV_INT8) out[n++] = (struct plane){kv->v_scales, sizeof(float)};
    return n;
}

static pdvm_status move_rows(struct cuda_backend *b, const struct backend_kv *kv,
                             const struct gpu_kv *to, cu_address memory, pdvm_error *err) {
    struct plane old[4], new[4];
    int n = planes_of(&kv->layout, old);
    planes_of(to, new);
    uint64_t strips = (uint64_t)kv->shape.n_layers * kv->shape.n_kv_heads;
    for (int i = 0; i < n; i++)
        for (uint64_t s = 0; s < strips; s++) {
            uint64_t bytes = kv->layout.capacity * old[i].pitch;
            PD_TRY(cuda_try(b,
                            b->cu->copy_on_device_async(
                                memory + new[i].offset + s * to->capacity *new[i].pitch,
                                kv->memory + old[i].offset + s * bytes, (size_t)bytes, b->stream),
                            "growing the KV cache", err));
        }
    return PDVM_OK;
}

/* Goes over to a larger cache; both are there for a moment. */
static pdvm_status grow(struct cuda_backend *b, struct backend_kv *kv, uint32_t capacity,
                        pdvm_error *err) {
    struct gpu_kv layout;
    cu_address memory;
    gpu_kv_layout(&kv->shape, capacity, &layout);
    uint64_t size = gpu_kv_size(&kv->shape, capacity);
    PD_TRY(cuda_alloc(b, size, "the KV cache", &memory, err));
    pdvm_status status = cuda_try(b, b->cu->memory_set_async(memory, 0, (size_t)size, b->stream),
                                  "clearing the KV cache", err);
    if (status == PDVM_OK && kv->memory) status = move_rows(b, kv, &layout, memory, err);
    if (status == PDVM_OK)
        status = cuda_try(b, b->cu->stream_synchronize(b->stream), "growing the KV cache", err);
    if (status != PDVM_OK) {
        b->cu->memory_free(memory);
        return status;
    }
    if (kv->memory) b->cu->memory_free(kv->memory);
    kv->memory = memory;
    kv->layout = layout;
    kv->size = size;
    return PDVM_OK;
}

pdvm_status cuda_kv_reserve(struct backend *base, struct backend_kv *kv, uint32_t n_slots,
                            pdvm_error *err) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    if (n_slots <= kv->layout.capacity) return PDVM_OK;
    uint64_t capacity = kv->layout.capacity ? kv->layout.capacity : FIRST_SLOTS;
    uint64_t enough = pd_round_up((size_t)n_slots, LEAST_SLOTS);
    while (capacity < n_slots) capacity *= 2;
    PD_TRY(cuda_enter(b, err));
    pdvm_status status = grow(b, kv, (uint32_t)capacity, err);
    /* Room to grow is only a convenience. */
    if (status == PDVM_ERR_MEMORY && enough < capacity) status = grow(b, kv, (uint32_t)enough, err);
    return status;
}

/* One head's strip of one layer, as it lies on the device. */
struct strip {
    uint8_t *rows;
    float *scales;
    cu_address rows_at, scales_at;
    size_t pitch, row, n;
};

static pdvm_status strip_open(const struct backend_kv *kv, uint32_t layer, bool value,
                              uint32_t head, uint32_t n_slots, struct strip *s, pdvm_error *err) {
    const struct gpu_kv *l = &kv->layout;
    uint64_t first = ((uint64_t)layer * kv->shape.n_kv_heads + head) * l->capacity;
    bool int8 = (value ? l->type_v : l->type_k) == GPU_KV_INT8;
    s->n = n_slots;
    s->pitch = value ? l->pitch_v : l->pitch_k;
    s->row = kv_head_row_bytes(value ? kv->shape.type_v : kv->shape.type_k, kv->shape.head_dim) -
             (int8 ? sizeof(float) : 0);
    s->rows_at = kv->memory + (value ? l->v : l->k) + first * s->pitch;
    s->scales_at =
        int8 ? kv->memory + (value ? l->v_scales : l->k_scales) + first * sizeof(float) : 0;
    if (!s->rows) PD_TRY(pd_calloc(&s->rows, n_slots, s->pitch, "the KV cache", err));
    if (!s->scales) PD_TRY(pd_calloc(&s->scales, n_slots, sizeof(float), "the KV cache", err));
    return PDVM_OK;
}

/* Between a strip and data[n_slots, n_kv_heads, row and scale]. */
static void exchange(const struct strip *s, uint32_t head, uint32_t n_heads, uint8_t *data,
                     bool to_strip) {
    size_t scale = s->scales_at ? sizeof(float) : 0, item = s->row + scale;
    for (size_t i = 0; i < s->n; i++) {
        uint8_t *p = data + (i * n_heads + head) * item;
        uint8_t *row = s->rows + i * s->pitch;
        if (to_strip) {
            memcpy(row, p, s->row);
            if (scale) memcpy(&s->scales[i], p + s->row, scale);
        } else {
            memcpy(p, row, s->row);
            if (scale) memcpy(p + s->row, &s->scales[i], scale);
        }
    }
}

static pdvm_status read_strip(struct cuda_backend *b, struct strip *s, pdvm_error *err) {
    PD_TRY(cuda_try(b, b->cu->copy_to_host(s->rows, s->rows_at, s->n * s->pitch),
                    "reading the KV cache", err));
    if (!s->scales_at) return PDVM_OK;
    return cuda_try(b, b->cu->copy_to_host(s->scales, s->scales_at, s->n * sizeof(float)),
                    "reading the KV cache", err);
}

static pdvm_status write_strip(struct cuda_backend *b, struct strip *s, pdvm_error *err) {
    PD_TRY(cuda_try(b, b->cu->copy_to_device(s->rows_at, s->rows, s->n * s->pitch),
                    "writing the KV cache", err));
    if (!s->scales_at) return PDVM_OK;
    return cuda_try(b, b->cu->copy_to_device(s->scales_at, s->scales, s->n * sizeof(float)),
                    "writing the KV cache", err);
}

static pdvm_status transfer(struct backend *base, const struct backend_kv *kv, uint32_t layer,
                            bool value, uint32_t n_slots, uint8_t *data, bool write,
                            pdvm_error *err) {
    struct cuda_backend *b = (struct cuda_backend *)base;
    struct strip s = {0};
    if (n_slots == 0) return PDVM_OK;
    pdvm_status status = cuda_enter(b, err);
    for (uint32_t head = 0; head < kv->shape.n_kv_heads && status == PDVM_OK; head++) {
        status = strip_open(kv, layer, value, head, n_slots, &s, err);
        if (status != PDVM_OK) break;
        if (write) {
            exchange(&s, head, kv->shape.n_kv_heads, data, true);
            status = write_strip(b, &s, err);
        } else {
            status = read_strip(b, &s, err);
            exchange(&s, head, kv->shape.n_kv_heads, data, false);
        }
    }
    free(s.rows);
    free(s.scales);
    return status;
}

pdvm_status cuda_kv_read(struct backend *base, const struct backend_kv *kv, uint32_t layer,
                         bool value, uint32_t n_slots, uint8_t *data, pdvm_error *err) {
    if (n_slots > kv->layout.capacity)
        return pd_fail(err, PDVM_ERR_RANGE, "KV cache: read of %u slots", n_slots);
    return transfer(base, kv, layer, value, n_slots, data, false, err);
}

pdvm_status cuda_kv_write(struct backend *base, struct backend_kv *kv, uint32_t layer, bool value,
                          uint32_t n_slots, const uint8_t *data, pdvm_error *err) {
    PD_TRY(cuda_kv_reserve(base, kv, n_slots, err));
    return transfer(base, kv, layer, value, n_slots, (uint8_t *)(uintptr_t)data, true, err);
}

size_t cuda_kv_bytes(const struct backend_kv *kv) {
    return (size_t)kv->size;
}
