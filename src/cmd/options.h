/**
 * Command lines, described by one table per command that both the parser and `--help` read.
 *
 *     int64_t threads = 0;
 *     const char *source = NULL, *output = NULL;
 *     const struct option_spec options[] = {
 *         OPTION_STRING("-o, --output", "FILE", "The file to write.", &output),
 *         OPTION_INT("-t, --threads", "N", "Threads; 0: one per processor.", &threads, 0, 1024),
 *         OPTION_END,
 *     };
 *     const struct operand operands[] = {
 *         {"SOURCE", "A Hugging Face model directory.", &source, true}, OPERAND_END};
 *     const struct options_page page = {.command = "convert", .usage = "SOURCE -o FILE [OPTIONS]",
 *         .description = "...", .options = options, .operands = operands, .examples = "..."};
 *     int code = options_parse(&page, argc, argv);
 *     if (code != OPTIONS_GO_ON) return code;
 *     if (!output) return options_error(&page, "no output file: give one with -o FILE");
 *
 * Accepted forms: `-n 5`, `-n5` (numbers only), `--predict 5`, `--predict=5`, several letters after
 * one dash as llama.cpp has them (`-ctk f16`), options and operands in any order, `--` before
 * operands that begin with a dash. An option given twice takes its last value, lists grow.
 */
#ifndef PDVM_CMD_OPTIONS_H
#define PDVM_CMD_OPTIONS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** What options_parse returns when the command should go on; anything else is an exit status. */
#define OPTIONS_GO_ON (-1)

/** Values of an option that may be given several times. The items belong to argv. */
struct option_list {
    const char **items; /**< freed with option_list_free */
    size_t n;
    size_t capacity;
};

/** Frees the array. */
void option_list_free(struct option_list *list);

/** What kind of value an option has. */
enum option_kind {
    OPTION_KIND_END,
    OPTION_KIND_GROUP,      /* a heading in the help */
    OPTION_KIND_FLAG,       /* bool: set to true */
    OPTION_KIND_CLEAR,      /* bool: set to false */
    OPTION_KIND_INT,        /* int64_t in [min, max] */
    OPTION_KIND_REAL,       /* double in [min, max] */
    OPTION_KIND_STRING,     /* const char * */
    OPTION_KIND_CHOICE,     /* int: the position in `choices` */
    OPTION_KIND_LIST,       /* struct option_list */
    OPTION_KIND_UNSUPPORTED /* refused with an explanation; not in the help */
};

/** One option. Made with the macros below. */
struct option_spec {
    enum option_kind kind;
    const char *names;    /**< "-n, --predict": as the help prints them */
    const char *argument; /**< name of the value in the help; NULL for flags */
    const char *help;     /**< sentences, wrapped by the help */
    void *target;
    double min, max;
    const char *const *choices; /**< NULL-terminated */
    bool *given;                /**< set to true if the option was given; may be NULL */
};

#define OPTION_GROUP(title)                                                                        \
    { .kind = OPTION_KIND_GROUP, .help = (title) }
#define OPTION_FLAG(n, h, bool_p)                                                                  \
    { .kind = OPTION_KIND_FLAG, .names = (n), .help = (h), .target = (bool_p) }
#define OPTION_CLEAR(n, h, bool_p)                                                                 \
    { .kind = OPTION_KIND_CLEAR, .names = (n), .help = (h), .target = (bool_p) }
#define OPTION_INT(n, a, h, int64_p, lo, hi)                                                       \
    {                                                                                              \
        .kind = OPTION_KIND_INT, .names = (n), .argument = (a), .help = (h), .target = (int64_p),  \
        .min = (double)(lo), .max = (double)(hi)                                                   \
    }
#define OPTION_REAL(n, a, h, double_p, lo, hi)                                                     \
    {                                                                                              \
        .kind = OPTION_KIND_REAL, .names = (n), .argument = (a), .help = (h),                      \
        .target = (double_p), .min = (lo), .max = (hi)                                             \
    }
#define OPTION_STRING(n, a, h, string_p)                                                           \
    { .kind = OPTION_KIND_STRING, .names = (n), .argument = (a), .help = (h), .target = (string_p) }
#define OPTION_CHOICE(n, a, h, int_p, list)                                                        \
    {                                                                                              \
        .kind = OPTION_KIND_CHOICE, .names = (n), .argument = (a), .help = (h), .target = (int_p), \
        .choices = (list)                                                                          \
    }
#define OPTION_LIST(n, a, h, list_p)                                                               \
    { .kind = OPTION_KIND_LIST, .names = (n), .argument = (a), .help = (h), .target = (list_p) }
#define OPTION_UNSUPPORTED(n, why)                                                                 \
    { .kind = OPTION_KIND_UNSUPPORTED, .names = (n), .help = (why) }
#define OPTION_END                                                                                 \
    { .kind = OPTION_KIND_END }

/** One argument without a dash, in order. */
struct operand {
    const char *name; /**< in capitals, as the help prints it; NULL ends the table */
    const char *help;
    const char **target;
    bool required;
};

#define OPERAND_END                                                                                \
    { NULL, NULL, NULL, false }

/** Everything about one command's command line. */
struct options_page {
    const char *command;     /**< its name */
    const char *usage;       /**< what follows the name; lines are further forms */
    const char *description; /**< paragraphs, parted by empty lines; wrapped by the help */
    const struct operand *operands;
    const struct option_spec *options; /**< -h, --help is understood by itself */
    const char *examples;              /**< printed as it is, indented by two; may be NULL */
    const char *operand_hint;          /**< what to say of an argument too many; may be NULL */
};

/**
 * Parses argv[1..argc). Returns OPTIONS_GO_ON, or the exit status: CMD_OK after --help, CMD_USAGE
 * after a message about what is wrong.
 */
int options_parse(const struct options_page *page, int argc, char **argv);

/** Prints "pdvm COMMAND: message" and where the help is; returns CMD_USAGE. */
int options_error(const struct options_page *page, const char *fmt, ...) PD_PRINTF(2, 3);

/** Reads a whole number strictly: no spaces, nothing behind it. False if it is none. */
bool options_int(const char *text, int64_t *out);

/** Reads a finite decimal number strictly. False if it is none. */
bool options_real(const char *text, double *out);

/**
 * The entry of `words` (n of them) that `word` was probably meant to be; NULL if none is near:
 * one is the beginning of the other, or few letters differ (Damerau-Levenshtein distance).
 */
const char *options_nearest(const char *word, const char *const *words, size_t n);

#endif
