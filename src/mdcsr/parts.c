#include "mdcsr/parts.h"

#include "mdcsr/layout.h"

#include <string.h>

const char *container_part_name(enum container_part part) {
    static const char *const names[N_PARTS] = {"values",        "index",  "row_offsets",
                                               "index_offsets", "scales", "codebook"};
    return names[part];
}

static enum safetensors_dtype values_dtype(enum mdcsr_values v) {
    switch (v) {
    case MDCSR_F32: return SAFETENSORS_F32;
    case MDCSR_BF16: return SAFETENSORS_BF16;
    case MDCSR_F16: return SAFETENSORS_F16;
    case MDCSR_INT8: return SAFETENSORS_I8;
    default: return SAFETENSORS_U8;
    }
}

void container_part_types(const struct container_matrix *info,
                          struct container_part_type out[N_PARTS]) {
    bool dense = info->index_coding == MDCSR_DENSE;
    memset(out, 0, N_PARTS * sizeof *out);

    struct container_part_type *p = &out[PART_VALUES];
    p->there = true;
    p->dtype = values_dtype(info->value_coding);
    p->n_dims = 1;
    p->dims[0] = info->n_entries;
    if (info->value_coding == MDCSR_LUT4) {
        p->dims[0] = (int64_t)mdcsr_values_bytes(MDCSR_LUT4, info->n_entries);
    } else if (dense) {
        p->n_dims = 2;
        p->dims[0] = info->rows;
        p->dims[1] = info->cols;
    }
    if (!dense) {
        p = &out[PART_INDEX];
        p->there = true;
        p->dtype = SAFETENSORS_U8;
        p->n_dims = 1;
        p->any_size = mdcsr_is_delta(info->index_coding);
        if (info->index_coding == MDCSR_BITMAP) {
            p->n_dims = 2;
            p->dims[0] = info->rows;
            p->dims[1] = (int64_t)mdcsr_bitmap_stride(info->cols);
        }
    }
    for (int i = PART_ROW_OFFSETS; i <= PART_INDEX_OFFSETS; i++) {
        p = &out[i];
        p->there = i == PART_ROW_OFFSETS ? !dense : mdcsr_is_delta(info->index_coding);
        p->offsets = true;
        p->n_dims = 1;
        p->dims[0] = info->rows + 1;
    }
    p = &out[PART_SCALES];
    p->there = mdcsr_has_scales(info->value_coding);
    p->dtype = info->group ? SAFETENSORS_BF16 : SAFETENSORS_F32;
    p->n_dims = info->group ? 2 : 1;
    p->dims[0] = info->rows;
    p->dims[1] = mdcsr_groups(info->value_coding, info->cols, info->group);

    p = &out[PART_CODEBOOK];
    p->there = mdcsr_codebook_size(info->value_coding) > 0;
    p->dtype = info->value_coding == MDCSR_LUT4 ? SAFETENSORS_I8 : SAFETENSORS_F32;
    p->n_dims = 1;
    p->dims[0] = mdcsr_codebook_size(info->value_coding);
}
