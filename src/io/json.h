/**
 * JSON from untrusted files, on top of jansson: strict parsing with limits, and typed fields whose
 * errors name the file and the field.
 */
#ifndef PDVM_IO_JSON_H
#define PDVM_IO_JSON_H

#include "base/error.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/** Deepest nesting of arrays and objects accepted; real files need fewer than ten levels. */
#define PD_JSON_MAX_DEPTH 64

/**
 * Parses `size` bytes (UTF-8, an object or an array at the top) into *out, released with
 * json_decref. PDVM_ERR_FORMAT with `path`, line and column for malformed text, duplicate keys,
 * numbers out of range, zero characters in strings, nesting deeper than PD_JSON_MAX_DEPTH and
 * anything after the value. Memory stays in proportion to `size`.
 */
pdvm_status pd_json_parse(const char *path, const char *data, size_t size, json_t **out,
                          pdvm_error *err);

/** Like pd_json_parse, and PDVM_ERR_FORMAT if the top is not an object. */
pdvm_status pd_json_parse_object(const char *path, const char *data, size_t size, json_t **out,
                                 pdvm_error *err);

/** "an object", "a string", ...: what a value is, for messages; "nothing" for NULL. */
const char *pd_json_kind(const json_t *value);

/** The member `field` of an object, or NULL if it is absent or null. Borrowed. */
json_t *pd_json_member(const json_t *object, const char *field);

/**
 * Reads a whole number in [min, max] into *out. An absent or null field leaves *out alone, or is
 * PDVM_ERR_FORMAT if `required`; so is a wrong type or a number out of range.
 */
pdvm_status pd_json_int(const char *path, const json_t *object, const char *field, bool required,
                        int64_t min, int64_t max, int64_t *out, pdvm_error *err);

/** Reads a number, whole or not, in the same way; it must be finite. */
pdvm_status pd_json_number(const char *path, const json_t *object, const char *field, bool required,
                           double *out, pdvm_error *err);

/** Reads true or false in the same way. */
pdvm_status pd_json_bool(const char *path, const json_t *object, const char *field, bool required,
                         bool *out, pdvm_error *err);

/** Reads a string in the same way; *out is owned by the object. */
pdvm_status pd_json_string(const char *path, const json_t *object, const char *field, bool required,
                           const char **out, pdvm_error *err);

/** Finds an object in the same way; *out is borrowed. */
pdvm_status pd_json_object(const char *path, const json_t *object, const char *field, bool required,
                           json_t **out, pdvm_error *err);

/** Finds an array in the same way; *out is borrowed. */
pdvm_status pd_json_array(const char *path, const json_t *object, const char *field, bool required,
                          json_t **out, pdvm_error *err);

/** A number, or null if it is not finite, which JSON cannot say. NULL: out of memory. */
json_t *pd_json_real(double value);

#endif
