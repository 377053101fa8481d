/** The tokens that calibration runs on: windows of a text. */
#ifndef PDVM_COMPRESS_CALIBRATE_TEXT_H
#define PDVM_COMPRESS_CALIBRATE_TEXT_H

#include "compress/calibrate.h"

/** Windows of a text. Zero-initialise before use; `ids` is freed with free(). */
struct calibration_text {
    int32_t *ids; /**< [n_windows, seq] */
    int64_t n_windows;
    int64_t seq;
    int64_t n_distinct;
};

/** See calibration_open. Warnings go to `notify`. */
pdvm_status calibration_text_read(struct model_source *source,
                                  const struct calibration_options *options,
                                  const struct pd_notify *notify, struct calibration_text *out,
                                  pdvm_error *err);

#endif
