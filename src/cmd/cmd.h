/**
 * The commands of the program. A command is a function with its own argc and argv; argv[0] is the
 * command's name. What it returns is the exit status. Adding one: declare its function here, add a
 * line to the table in main.c, and describe its options in a table (options.h), from which
 * `--help` is printed.
 */
#ifndef PDVM_CMD_CMD_H
#define PDVM_CMD_CMD_H

#include "pdvm.h"

/** Exit statuses. A command ended by a signal returns 128 + its number: 130 after Ctrl-C. */
enum { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2 };

/** One line of the table of commands. */
struct command {
    const char *name;
    const char *summary; /**< one line, lower case, no full stop */
    int (*main)(int argc, char **argv);
};

/** The table, ended by a NULL name. */
extern const struct command commands[];

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_convert(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_unpack(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_sweep(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_help(int argc, char **argv);
int cmd_version(int argc, char **argv);

#endif
