/* The program: finds the command, runs it, checks that its output has arrived. */
#include "cmd/cmd.h"
#include "cmd/options.h"
#include "cmd/terminal.h"
#include "pdvm_build.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/* In the order of a user's first day. */
const struct command commands[] = {
    {"convert", "make a model sparse and small: a .pdvm file", cmd_convert},
    {"run", "generate text", cmd_run},
    {"chat", "have a conversation", cmd_chat},
    {"inspect", "show what is in a model", cmd_inspect},
    {"unpack", "turn a .pdvm file back into plain safetensors", cmd_unpack},
    {"tokenize", "show the tokens of a text, or the text of tokens", cmd_tokenize},
    {"eval", "measure perplexity and divergence on a text", cmd_eval},
    {"plan", "find the best sparsity and coding of every matrix", cmd_plan},
    {"sweep", "compress in many ways and compare: the table of a model card", cmd_sweep},
    {"bench", "measure the speed of prompts and generation", cmd_bench},
    {"help", "explain a command", cmd_help},
    {"version", "print the version", cmd_version},
    {NULL, NULL, NULL},
};

static const struct command *find_command(const char *name) {
    for (const struct command *c = commands; c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

/* Says that there is no such command, and which one may have been meant. */
static int unknown_command(const char *name) {
    const char *names[sizeof commands / sizeof *commands];
    size_t n = 0;
    for (const struct command *c = commands; c->name; c++) names[n++] = c->name;
    const char *nearest = options_nearest(name, names, n);
    if (nearest)
        fprintf(stderr, "pdvm: unknown command '%s', did you mean '%s'?\n", name, nearest);
    else
        fprintf(stderr, "pdvm: unknown command '%s'\n", name);
    fputs("Try 'pdvm help' for the list of commands.\n", stderr);
    return CMD_USAGE;
}

static void print_overview(FILE *f) {
    fputs("Usage: pdvm COMMAND [ARGUMENTS]\n\n"
          "Runs Llama-family language models with sparse and quantised weights.\n\n"
          "Commands:\n",
          f);
    for (const struct command *c = commands; c->name; c++)
        fprintf(f, "  %-10s %s\n", c->name, c->summary);
    fputs("\n'pdvm help COMMAND' or 'pdvm COMMAND --help' explains one of them.\n\n"
          "A model is a .pdvm file (made by 'pdvm convert'), a GGUF file or a\n"
          "Hugging Face directory:\n"
          "  pdvm run models/tales -p \"Once upon a time\"\n",
          f);
}

int cmd_help(int argc, char **argv) {
    if (argc < 2 || argv[1][0] == '-') {
        print_overview(stdout);
        return CMD_OK;
    }
    const struct command *c = find_command(argv[1]);
    if (!c) return unknown_command(argv[1]);
    if (c->main == cmd_help) {
        print_overview(stdout);
        return CMD_OK;
    }
    char help[] = "--help";
    char *arguments[] = {argv[1], help, NULL};
    return c->main(2, arguments);
}

int cmd_version(int argc, char **argv) {
    const struct option_spec options[] = {OPTION_END};
    const struct operand operands[] = {OPERAND_END};
    const struct options_page page = {
        .command = "version",
        .usage = "",
        .description = "Prints the version of pdvm and the commit it was built from.",
        .operands = operands,
        .options = options,
    };
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    printf("pdvm %s (%s)\n", pdvm_version(), PDVM_GIT_COMMIT);
    return CMD_OK;
}

static int run_command(int argc, char **argv) {
    if (argc < 2) {
        print_overview(stderr);
        return CMD_USAGE;
    }
    char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_overview(stdout);
        return CMD_OK;
    }
    if (strcmp(name, "--version") == 0) {
        char version[] = "version";
        char *arguments[] = {version, NULL};
        return cmd_version(1, arguments);
    }
    const struct command *c = find_command(name);
    return c ? c->main(argc - 1, argv + 1) : unknown_command(name);
}

int main(int argc, char **argv) {
    terminal_init();
    int code = run_command(argc, argv);
    /* Output that did not arrive (full disk, closed pipe) must not look like success. */
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == CMD_OK) {
        fprintf(stderr, "pdvm: cannot write to standard output%s%s\n", errno ? ": " : "",
                errno ? strerror(errno) : "");
        code = CMD_FAILED;
    }
    return code;
}
