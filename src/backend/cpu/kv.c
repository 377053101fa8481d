/* KV cache memory on the CPU: chunks of 64 slots, allocated as the cache grows. */
#include "backend/cpu/cpu.h"
#include "base/alloc.h"
#include "base/checked.h"
#include "base/half.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

pdvm_status cpu_kv_create(struct backend *b, const struct kv_shape *shape, struct backend_kv **out,
                          pdvm_error *err) {
    (void)b;
    PD_TRY(pd_calloc(out, 1, sizeof **out, "a KV cache", err));
    struct backend_kv *kv = *out;
    kv->shape = *shape;
    pdvm_kv_type types[2] = {shape->type_k, shape->type_v};
    for (int i = 0; i < 2; i++) {
        kv->row_bytes[i] = kv_head_row_bytes(types[i], shape->head_dim);
        if (types[i] == PDVM_KV_INT8) kv->row_bytes[i] = shape->head_dim;
        kv->plane_bytes[i] = kv->row_bytes[i] * KV_CHUNK;
    }
    size_t scales = 2 * KV_CHUNK * sizeof(float);
    kv->layer_bytes = shape->n_kv_heads * (kv->plane_bytes[0] + kv->plane_bytes[1] + scales);
    return PDVM_OK;
}

void cpu_kv_free(struct backend *b, struct backend_kv *kv) {
    (void)b;
    if (!kv) return;
    for (size_t i = 0; i < kv->n_chunks; i++) free(kv->chunks[i]);
    free(kv->chunks);
    free(kv);
}

pdvm_status cpu_kv_reserve(struct backend *b, struct backend_kv *kv, uint32_t n_slots,
                           pdvm_error *err) {
    (void)b;
    size_t need = ((size_t)n_slots + KV_CHUNK - 1) / KV_CHUNK;
    size_t bytes;
    if (!pd_mul_size(kv->layer_bytes, kv->shape.n_layers, &bytes))
        return pd_fail_memory(err, SIZE_MAX, "the KV cache");
    PD_TRY(pd_grow(&kv->chunks, &kv->capacity, need, sizeof *kv->chunks, "the KV cache", err));
    while (kv->n_chunks < need) {
        uint8_t *chunk;
        PD_TRY(pd_alloc_aligned(&chunk, bytes, "the KV cache", err));
        memset(chunk, 0, bytes);
        kv->chunks[kv->n_chunks++] = chunk;
    }
    return PDVM_OK;
}

size_t cpu_kv_bytes(const struct backend_kv *kv) {
    return kv->n_chunks * kv->layer_bytes * kv->shape.n_layers;
}

static void store_int8(const float *row, uint32_t n, int8_t *out, float *scale) {
    float amax = 0;
    for (uint32_t i = 0; i < n; i++) {
        float a = fabsf(row[i]);
        if (!(a <= amax)) amax = a; /* a NaN must end up in the scale */
    }
    *scale = amax / 127.0f;
    float inverse = amax >= 1e-30f && amax < INFINITY ? 127.0f / amax : 0.0f;
    for (uint32_t i = 0; i < n; i++)
        out[i] = inverse > 0 ? (int8_t)rintf(row[i] * inverse) : (int8_t)0;
}

void cpu_kv_store(struct backend_kv *kv, uint32_t layer, bool value, uint32_t head, uint32_t slot,
                  const float *row) {
    uint32_t n = kv->shape.head_dim;
    size_t chunk = slot / KV_CHUNK, i = slot % KV_CHUNK;
    uint8_t *dst = cpu_kv_rows(kv, chunk, layer, value, head) + i * kv->row_bytes[value];
    switch (value ? kv->shape.type_v : kv->shape.type_k) {
    case PDVM_KV_F32: memcpy(dst, row, n * sizeof *row); break;
    case PDVM_KV_F16:
        for (uint32_t c = 0; c < n; c++) ((uint16_t *)(void *)dst)[c] = pd_float_to_f16(row[c]);
        break;
    case PDVM_KV_INT8:
        store_int8(row, n, (int8_t *)dst, cpu_kv_scales(kv, chunk, layer, value, head) + i);
        break;
    }
}

/* Copies rows between the cache and the caller's array, in either direction. */
static void copy_rows(const struct backend_kv *kv, uint32_t layer, bool value, uint32_t n_slots,
                      uint8_t *data, bool to_cache) {
    bool int8 = (value ? kv->shape.type_v : kv->shape.type_k) == PDVM_KV_INT8;
    size_t row = kv->row_bytes[value];
    for (uint32_t slot = 0; slot < n_slots; slot++) {
        for (uint32_t head = 0; head < kv->shape.n_kv_heads; head++) {
            size_t chunk = slot / KV_CHUNK, i = slot % KV_CHUNK;
            uint8_t *cache = cpu_kv_rows(kv, chunk, layer, value, head) + i * row;
            memcpy(to_cache ? cache : data, to_cache ? data : cache, row);
            data += row;
            if (!int8) continue;
            float *scale = cpu_kv_scales(kv, chunk, layer, value, head) + i;
            if (to_cache)
                memcpy(scale, data, sizeof *scale);
            else
                memcpy(data, scale, sizeof *scale);
            data += sizeof *scale;
        }
    }
}

pdvm_status cpu_kv_read(struct backend *b, const struct backend_kv *kv, uint32_t layer, bool value,
                        uint32_t n_slots, uint8_t *data, pdvm_error *err) {
    (void)b;
    if (n_slots > kv->n_chunks * KV_CHUNK)
        return pd_fail(err, PDVM_ERR_RANGE, "KV cache: read of %u slots", n_slots);
    copy_rows(kv, layer, value, n_slots, data, false);
    return PDVM_OK;
}

pdvm_status cpu_kv_write(struct backend *b, struct backend_kv *kv, uint32_t layer, bool value,
                         uint32_t n_slots, const uint8_t *data, pdvm_error *err) {
    PD_TRY(cpu_kv_reserve(b, kv, n_slots, err));
    copy_rows(kv, layer, value, n_slots, (uint8_t *)(uintptr_t)data, true);
    return PDVM_OK;
}
