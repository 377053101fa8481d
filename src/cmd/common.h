/** What several commands share: reading texts, checking them, printing JSON. */
#ifndef PDVM_CMD_COMMON_H
#define PDVM_CMD_COMMON_H

#include "base/error.h"
#include "compress/prune.h"

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

/** Ways to print results: the values of "-o text|json". */
enum output_format { OUTPUT_TEXT, OUTPUT_JSON };

/** The names of enum output_format, for OPTION_CHOICE. */
extern const char *const output_formats[];

/** The names of KV cache types, llama.cpp's q8_0 included; see kv_type_of. */
extern const char *const kv_type_names[];

/** The type that a position in kv_type_names stands for. */
pdvm_kv_type kv_type_of(int choice);

/** Choices of --prompt-activations, and the bits that a choice means. */
extern const char *const activation_names[];
uint32_t activations_of(int choice);

/** Ways to print tables: the values of "-o md|csv|json". */
enum table_format { TABLE_MD, TABLE_CSV, TABLE_JSON };

/** The names of enum table_format, for OPTION_CHOICE. */
extern const char *const table_formats[];

/** How the embedding and the head may be stored, in the order of enum mdcsr_values. */
extern const char *const embed_names[];

/** Columns that may share a scale, and the number that a choice means (none: SETTING_UNSET). */
extern const char *const group_names[];
int group_of(int choice);

/** PDVM_ERR_ARGUMENT, naming the flag and all methods, if there is none of that name. */
pdvm_status find_method(const char *flag, const char *name, const struct prune_method **out,
                        pdvm_error *err);

/**
 * Reads a whole text from a file, a pipe, or standard input ("-"). *data is freed with free() and
 * ends with a zero byte that *size does not count.
 */
pdvm_status read_text(const char *path, char **data, size_t *size, pdvm_error *err);

/** Reads a text in UTF-8 in the same way. */
pdvm_status read_utf8(const char *path, char **data, size_t *size, pdvm_error *err);

/** PDVM_ERR_ARGUMENT naming `what` and the offset of the first byte that is not valid UTF-8. */
pdvm_status check_utf8(const char *what, const char *text, size_t size, pdvm_error *err);

/** The most memory that the process has had so far, in bytes; 0 if the system does not say. */
uint64_t peak_memory(void);

/**
 * Prints a value as JSON and a newline to standard output, and releases it. NULL (out of memory)
 * and failing writes are reported; returns the exit status.
 */
int print_json(const char *command, json_t *value);

/** Text that may not be valid UTF-8 as a JSON string, bad bytes as U+FFFD. NULL: out of memory. */
json_t *json_text(const char *text, size_t size);

/**
 * Prints bytes so that they stay on one line and are safe for a terminal: \n, \t, \\ and \xNN for
 * control characters and what is not UTF-8.
 */
void print_escaped(const char *text, size_t size);

/**
 * Replaces the escapes \n \r \t \\ \" \' and \xNN by what they stand for, in place; other
 * backslashes stay. Returns the new length; \x00 may be within it.
 */
size_t unescape(char *text);

#endif
