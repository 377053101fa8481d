/* pdvm unpack: a .pdvm file as plain safetensors. */
#include "cmd/cmd.h"
#include "cmd/options.h"
#include "cmd/terminal.h"
#include "compress/unpack.h"

#include <stdio.h>

static const char description[] =
    "Writes the weights of a .pdvm file as they are used, codes times scales, to "
    "DIR/model.safetensors, with config.json and the tokenizer's files beside it: a model "
    "directory that transformers and other programs load, to check results or to go on from. With "
    "32-bit floats every value is exact. A file whose data do not match its hash is refused. Each "
    "file appears only when it is complete.";

static const char examples[] = "pdvm unpack tales.pdvm -o tales-unpacked\n"
                               "pdvm unpack tales.pdvm -o tales-unpacked --dtype bf16 --force";

static const char *const dtype_names[] = {"f32", "bf16", "f16", NULL};
static const enum safetensors_dtype dtypes[] = {SAFETENSORS_F32, SAFETENSORS_BF16, SAFETENSORS_F16};

static int unpack(const char *file, const char *directory, struct unpack_options *o, bool quiet) {
    struct terminal_progress bar = {.quiet = quiet};
    struct unpack_result result;
    pdvm_error err;
    char size[32];
    o->notify = (struct pd_notify){.progress = terminal_progress, .progress_user = &bar};
    pdvm_status status = unpack_model(file, directory, o, &result, &err);
    terminal_progress_end(&bar);
    if (status != PDVM_OK) {
        int code = terminal_fail("unpack", &err);
        return status == PDVM_ERR_ARGUMENT ? CMD_USAGE : code;
    }
    if (quiet) return CMD_OK;
    printf("%s: %lld weights as %s, %s", directory, (long long)result.n_weights,
           safetensors_dtype_name(o->dtype), terminal_size(size, result.bytes));
    if (o->dtype != SAFETENSORS_F32) printf(", %lld of them rounded", (long long)result.n_changed);
    putchar('\n');
    return CMD_OK;
}

int cmd_unpack(int argc, char **argv) {
    const char *file = NULL, *directory = NULL;
    int dtype = 0;
    int64_t threads = 0;
    bool quiet = false;
    struct unpack_options o = {.dtype = SAFETENSORS_F32};
    const struct operand operands[] = {{"FILE", "A .pdvm file.", &file, false}, OPERAND_END};
    const struct option_spec options[] = {
        OPTION_STRING("-o, --output", "DIR", "The directory to write; made if missing. Required.",
                      &directory),
        OPTION_CHOICE("--dtype", "TYPE",
                      "Type of the numbers: f32, which is exact, bf16 or f16. [f32]", &dtype,
                      dtype_names),
        OPTION_FLAG("--force", "Replace the model's files in a directory that is not empty.",
                    &o.force),
        OPTION_INT("-t, --threads", "N", "Threads; 0 is one per physical core. [0]", &threads, 0,
                   1024),
        OPTION_FLAG("-q, --quiet", "Print nothing but errors.", &quiet),
        OPTION_END,
    };
    const struct options_page page = {.command = "unpack",
                                      .usage = "FILE -o DIR [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples};
    int code = options_parse(&page, argc, argv);
    if (code != OPTIONS_GO_ON) return code;
    if (!file) return options_error(&page, "no file: pdvm unpack FILE -o DIR");
    if (!directory)
        return options_error(&page, "no output: give the directory to write with -o DIR");
    o.dtype = dtypes[dtype];
    o.n_threads = (int)threads;
    return unpack(file, directory, &o, quiet);
}
