/* Parsing of command lines by table, and the help printed from the same table. */
#include "cmd/options.h"
#include "base/alloc.h"
#include "cmd/cmd.h"
#include "cmd/terminal.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* Longest option name, with its dashes. */
#define NAME_MAX_LENGTH 40
/* Most operands that a command may have. */
#define MAX_OPERANDS 8
/* Column where the explanations of the help begin, and the width of a page. */
#define HELP_COLUMN 30
#define HELP_WIDTH 80

void option_list_free(struct option_list *list) {
    free(list->items);
    *list = (struct option_list){0};
}

/* ---- values ---------------------------------------------------------------------------- */

bool options_int(const char *text, int64_t *out) {
    char *end;
    if (!((*text >= '0' && *text <= '9') || *text == '-' || *text == '+')) return false;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0) return false;
    *out = value;
    return true;
}

bool options_real(const char *text, double *out) {
    /* strtod would also take "nan", "0x1p3" and leading spaces. */
    if (text[0] == '\0' || text[strspn(text, "0123456789+-.eE")] != '\0') return false;
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !isfinite(value)) return false;
    *out = value;
    return true;
}

/* ---- names ----------------------------------------------------------------------------- */

/* Copies the next name of a list "-a, --all" into `name`; NULL at the end. */
static const char *next_name(const char *names, char name[NAME_MAX_LENGTH]) {
    names += strspn(names, ", ");
    size_t len = strcspn(names, ", ");
    if (len == 0) return NULL;
    size_t kept = len < NAME_MAX_LENGTH ? len : NAME_MAX_LENGTH - 1;
    memcpy(name, names, kept);
    name[kept] = '\0';
    return names + len;
}

static bool has_name(const struct option_spec *o, const char *wanted) {
    char name[NAME_MAX_LENGTH];
    if (!o->names) return false;
    for (const char *rest = o->names; (rest = next_name(rest, name));)
        if (strcmp(name, wanted) == 0) return true;
    return false;
}

static const struct option_spec *find_option(const struct options_page *page, const char *name) {
    for (const struct option_spec *o = page->options; o->kind != OPTION_KIND_END; o++)
        if (has_name(o, name)) return o;
    return NULL;
}

/* Damerau-Levenshtein distance (optimal string alignment) of two short words. */
static size_t edit_distance(const char *a, const char *b) {
    size_t rows[3][NAME_MAX_LENGTH + 1];
    size_t la = strlen(a), lb = strlen(b);
    if (la > NAME_MAX_LENGTH || lb > NAME_MAX_LENGTH) return SIZE_MAX;
    size_t *before = rows[0], *last = rows[1], *now = rows[2];
    for (size_t j = 0; j <= lb; j++) before[j] = last[j] = j;
    for (size_t i = 1; i <= la; i++) {
        now[0] = i;
        for (size_t j = 1; j <= lb; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        size_t *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[lb];
}

const char *options_nearest(const char *word, const char *const *words, size_t n) {
    const char *nearest = NULL;
    size_t least = SIZE_MAX, length = strlen(word);
    size_t allowed = length <= 4 ? 1 : length <= 8 ? 2 : 3;
    for (size_t i = 0; i < n; i++) {
        size_t distance = edit_distance(word, words[i]);
        size_t shorter = strlen(words[i]) < length ? strlen(words[i]) : length;
        /* An abbreviation or a longer form of the same name beats a chance likeness. */
        if (shorter >= 3 && strncmp(word, words[i], shorter) == 0) distance = 1;
        if (distance <= allowed && distance < least) {
            least = distance;
            nearest = words[i];
        }
    }
    return nearest;
}

/* Writes the option that `name` was probably meant to be; false if none is near. */
static bool suggest(const struct options_page *page, const char *name,
                    char found[NAME_MAX_LENGTH]) {
    char candidate[NAME_MAX_LENGTH];
    const char *bare = name + strspn(name, "-");
    size_t length = strlen(bare), least = SIZE_MAX;
    for (const struct option_spec *o = page->options; o->kind != OPTION_KIND_END; o++) {
        if (!o->names || o->kind == OPTION_KIND_UNSUPPORTED) continue;
        for (const char *rest = o->names; (rest = next_name(rest, candidate));) {
            const char *word = candidate + strspn(candidate, "-");
            if (strlen(word) < 2) continue;
            if (!options_nearest(bare, &word, 1)) continue;
            size_t distance = edit_distance(bare, word);
            if (strncmp(bare, word, length) == 0) distance = 0;
            if (distance >= least) continue;
            least = distance;
            memcpy(found, candidate, sizeof candidate);
        }
    }
    return least != SIZE_MAX;
}

/* ---- errors ---------------------------------------------------------------------------- */

int options_error(const struct options_page *page, const char *fmt, ...) {
    char message[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    terminal_error(page->command, "%s", message);
    fprintf(stderr, "Try 'pdvm %s --help' for what it understands.\n", page->command);
    return CMD_USAGE;
}

static int unknown_option(const struct options_page *page, const char *name) {
    char found[NAME_MAX_LENGTH];
    if (suggest(page, name, found))
        return options_error(page, "unknown option '%s', did you mean '%s'?", name, found);
    return options_error(page, "unknown option '%s'", name);
}

/* ---- parsing --------------------------------------------------------------------------- */

static int bad_choice(const struct options_page *page, const struct option_spec *o,
                      const char *name, const char *value) {
    char list[512] = "";
    size_t used = 0;
    for (size_t i = 0; o->choices[i] && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s",
                                 i == 0              ? ""
                                 : o->choices[i + 1] ? ", "
                                                     : " or ",
                                 o->choices[i]);
    return options_error(page, "%s '%s': must be %s", name, value, list);
}

static int set_number(const struct options_page *page, const struct option_spec *o,
                      const char *name, const char *value) {
    double number = 0;
    int64_t integer = 0;
    bool whole = o->kind == OPTION_KIND_INT;
    bool good = whole ? options_int(value, &integer) : options_real(value, &number);
    if (!good)
        return options_error(page, "%s '%s': not a %snumber", name, value, whole ? "whole " : "");
    if (whole) number = (double)integer;
    if (number < o->min || number > o->max) {
        if (o->max >= 0x1p31 && number < o->min)
            return options_error(page, "%s %s: must be at least %.15g", name, value, o->min);
        return options_error(page, "%s %s: must be from %.15g to %.15g", name, value, o->min,
                             o->max);
    }
    if (whole)
        *(int64_t *)o->target = integer;
    else
        *(double *)o->target = number;
    return OPTIONS_GO_ON;
}

/* Stores `value` (NULL for flags) into the option's target. */
static int set_option(const struct options_page *page, const struct option_spec *o,
                      const char *name, const char *value) {
    if (o->given) *o->given = true;
    switch (o->kind) {
    case OPTION_KIND_FLAG: *(bool *)o->target = true; return OPTIONS_GO_ON;
    case OPTION_KIND_CLEAR: *(bool *)o->target = false; return OPTIONS_GO_ON;
    case OPTION_KIND_INT:
    case OPTION_KIND_REAL: return set_number(page, o, name, value);
    case OPTION_KIND_STRING: *(const char **)o->target = value; return OPTIONS_GO_ON;
    case OPTION_KIND_CHOICE:
        for (int i = 0; o->choices[i]; i++)
            if (strcmp(o->choices[i], value) == 0) {
                *(int *)o->target = i;
                return OPTIONS_GO_ON;
            }
        return bad_choice(page, o, name, value);
    case OPTION_KIND_LIST: {
        struct option_list *list = o->target;
        pdvm_error err;
        if (pd_grow(&list->items, &list->capacity, list->n + 1, sizeof *list->items, name, &err))
            return terminal_fail(page->command, &err);
        list->items[list->n++] = value;
        return OPTIONS_GO_ON;
    }
    default: return OPTIONS_GO_ON;
    }
}

static bool takes_value(const struct option_spec *o) {
    return o->kind == OPTION_KIND_INT || o->kind == OPTION_KIND_REAL ||
           o->kind == OPTION_KIND_STRING || o->kind == OPTION_KIND_CHOICE ||
           o->kind == OPTION_KIND_LIST;
}

/* "-n5": a number right behind a one-letter option. NULL if `arg` is not of that form. */
static const struct option_spec *find_attached(const struct options_page *page, const char *arg) {
    double number;
    char name[3] = {'-', arg[1], '\0'};
    const struct option_spec *o = find_option(page, name);
    if (!o || (o->kind != OPTION_KIND_INT && o->kind != OPTION_KIND_REAL)) return NULL;
    return options_real(arg + 2, &number) ? o : NULL;
}

/* Parses the option at argv[*i]; *i moves on if it took the next argument too. */
static int parse_option(const struct options_page *page, int argc, char **argv, int *i) {
    const char *arg = argv[*i];
    char name[NAME_MAX_LENGTH];
    const char *value = NULL, *equals = strncmp(arg, "--", 2) == 0 ? strchr(arg, '=') : NULL;
    size_t length = equals ? (size_t)(equals - arg) : strlen(arg);
    if (length >= sizeof name) return options_error(page, "unknown option '%s'", arg);
    memcpy(name, arg, length);
    name[length] = '\0';
    if (equals) value = equals + 1;

    const struct option_spec *o = find_option(page, name);
    if (!o && arg[1] != '-' && (o = find_attached(page, arg))) {
        value = arg + 2;
        name[2] = '\0';
    }
    if (!o) return unknown_option(page, name);
    if (o->kind == OPTION_KIND_UNSUPPORTED) return options_error(page, "%s: %s", name, o->help);
    if (!takes_value(o)) {
        if (value) return options_error(page, "%s takes no value, but '%s' was given", name, value);
        return set_option(page, o, name, NULL);
    }
    if (!value) {
        if (*i + 1 >= argc) return options_error(page, "%s needs a value: %s", name, o->argument);
        value = argv[++*i];
        /* "-p --temp 0": a forgotten value, not a prompt. */
        if (value[0] == '-' && find_option(page, value))
            return options_error(page, "%s needs a value (%s), but the option '%s' follows", name,
                                 o->argument, value);
    }
    return set_option(page, o, name, value);
}

static void print_help(const struct options_page *page);

int options_parse(const struct options_page *page, int argc, char **argv) {
    const char *given[MAX_OPERANDS];
    size_t n_operands = 0;
    bool only_operands = false;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(page);
            return CMD_OK;
        } else if (strcmp(argv[i], "--") == 0)
            break;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_operands && strcmp(arg, "--") == 0) {
            only_operands = true;
        } else if (!only_operands && arg[0] == '-' && arg[1] != '\0') {
            int code = parse_option(page, argc, argv, &i);
            if (code != OPTIONS_GO_ON) return code;
        } else {
            const struct operand *o = &page->operands[n_operands];
            /* A target that is set: an option has named it already (-m MODEL). */
            if (!o->name || n_operands == MAX_OPERANDS || *o->target)
                return options_error(page, "unexpected argument '%s'%s%s", arg,
                                     page->operand_hint ? ": " : "",
                                     page->operand_hint ? page->operand_hint : "");
            given[n_operands++] = *o->target = arg;
        }
    }
    for (size_t i = 0; i < n_operands; i++)
        if (*page->operands[i].target != given[i])
            return options_error(page, "%s is given twice: '%s' and '%s'", page->operands[i].name,
                                 given[i], *page->operands[i].target);
    for (const struct operand *o = page->operands; o->name; o++)
        if (o->required && !*o->target)
            return options_error(page, "%s is missing: pdvm %s %.*s", o->name, page->command,
                                 (int)strcspn(page->usage, "\n"), page->usage);
    return OPTIONS_GO_ON;
}

/* ---- help ------------------------------------------------------------------------------ */

/* Prints words from column `column` on, wrapped, further lines indented by `indent`. */
static void print_wrapped(const char *text, int column, int indent) {
    while (*text) {
        if (*text == '\n') {
            printf("\n\n%*s", indent, "");
            text += strspn(text, "\n");
            column = indent;
            continue;
        }
        size_t length = strcspn(text, " \n");
        if (column > indent && column + 1 + (int)length > HELP_WIDTH) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        printf("%.*s", (int)length, text);
        column += (int)length;
        text += length;
        text += strspn(text, " ");
    }
    putchar('\n');
}

static void print_heading(const char *title) {
    if (terminal_colors(stdout))
        printf("\n\033[1m%s:\033[0m\n", title);
    else
        printf("\n%s:\n", title);
}

/* One entry: the term on the left, its explanation on the right. */
static void print_entry(const char *term, const char *argument, const char *help) {
    int column = printf("  %s%s%s", term, argument ? " " : "", argument ? argument : "");
    if (column > HELP_COLUMN - 2)
        printf("\n%*s", HELP_COLUMN, "");
    else
        printf("%*s", HELP_COLUMN - column, "");
    print_wrapped(help, HELP_COLUMN, HELP_COLUMN);
}

static void print_options(const struct options_page *page) {
    const struct option_spec *o = page->options;
    if (o->kind != OPTION_KIND_GROUP) print_heading("Options");
    for (; o->kind != OPTION_KIND_END; o++) {
        if (o->kind == OPTION_KIND_UNSUPPORTED) continue;
        if (o->kind == OPTION_KIND_GROUP)
            print_heading(o->help);
        else
            print_entry(o->names, o->argument, o->help);
    }
    print_entry("-h, --help", NULL, "Print this help.");
}

static void print_examples(const char *examples) {
    print_heading("Examples");
    while (*examples) {
        size_t length = strcspn(examples, "\n");
        printf("%s%.*s\n", length ? "  " : "", (int)length, examples);
        examples += length + (examples[length] == '\n');
    }
}

static void print_help(const struct options_page *page) {
    const char *usage = page->usage, *label = "Usage:";
    do {
        size_t length = strcspn(usage, "\n");
        printf("%s pdvm %s%s%.*s\n", label, page->command, length ? " " : "", (int)length, usage);
        usage += length + (usage[length] == '\n');
        label = "      ";
    } while (*usage);
    putchar('\n');
    print_wrapped(page->description, 0, 0);
    if (page->operands->name) {
        print_heading("Arguments");
        for (const struct operand *o = page->operands; o->name; o++)
            print_entry(o->name, NULL, o->help);
    }
    print_options(page);
    if (page->examples) print_examples(page->examples);
}
