/* pdvm convert: makes a .pdvm file of a model. */
#include "base/time.h"
#include "cmd/cmd.h"
#include "cmd/common.h"
#include "cmd/report_table.h"
#include "cmd/shared_options.h"
#include "cmd/terminal.h"
#include "compress/convert.h"

#include <stdio.h>
#include <string.h>

static const char description[] =
    "Reads a model, makes zeros of some weights if asked to, stores the others in fewer bits, and "
    "writes one .pdvm file, which any safetensors reader can open. The file appears under its name "
    "only when it is complete; an interrupt or a full disk leaves what was there.\n"
    "At the end a table tells, for each kind of layer: the weights and the share of zeros, the "
    "bits stored per weight with everything that belongs to them, the size, and the error: the "
    "root mean square of what changed, relative to the source's weights. After pruning also the "
    "zeros before, and which part of the error pruning and rounding have (what a method changes in "
    "the weights that are left counts as rounding), and after calibration the output's error: the "
    "same of the products with the text's activations.\n"
    "The embedding and the head are never pruned and follow --embed instead of the general "
    "settings; norms stay 32-bit floats.\n"
    "--layers PATTERN=SETTING[,SETTING...] changes settings of some matrices: PATTERN is a shell "
    "pattern for their names, such as \"model.layers.[01].*\", or one of embed, q, k, v, o, gate, "
    "up, down, head; settings are values, codebook, index, group and sparsity. Of several that "
    "match the last wins. Quote them, or the shell reads the pattern.\n"
    "Some methods calibrate: they run the text of --calib through the model, layer by layer, and "
    "look at what each matrix multiplies; the output of the pruned layers feeds the next ones. That "
    "takes 4 bytes of memory per token and column of the hidden state and of the widest matrix (1.1 "
    "GB per 1000 columns and 262144 tokens), beside the output in a temporary file if it is more "
    "than half of the machine's memory. Finished layers stay in FILE.work until the end; after an "
    "interrupt --resume goes on with them. OpenBLAS must be installed; on machines with an NVIDIA GPU and "
    "cuBLAS most of the work is done there (--backend).";

static const char examples[] =
    "pdvm convert models/tales -o tales.pdvm\n"
    "pdvm convert models/tales -o tales.pdvm --method magnitude --sparsity 0.5\n"
    "pdvm convert models/tales -o tales.pdvm --values lut4 --layers \"down=values=int8\"\n"
    "pdvm convert models/tales -o tales.pdvm --method magnitude --sparsity 0.6 \\\n"
    "    --layers \"model.layers.0.*=sparsity=0.3\" --layers \"v=sparsity=0.4,values=lut8\"\n"
    "pdvm convert models/tales -o tales.pdvm --method wanda --sparsity 0.5 --calib stories.txt";

/* In the order of the enumerations that their positions are turned into. */
static const char *const value_names[] = {"f32", "bf16", "f16", "int8", "lut8", "lut4", NULL};
static const char *const codebook_names[] = {"linear", "prime", "learned", NULL};
static const char *const index_names[] = {"dense", "bitmap", "delta8", "delta4", "auto", NULL};
/* Of enum prune_scope. */
static const char *const scope_names[] = {"row", "matrix", "block", NULL};

struct arguments {
    const char *source, *output, *method, *calib, *backend, *layer_sparsity, *layers_file;
    struct option_list layers;
    double sparsity;
    int values, codebook, index, group, embed, scope;
    int64_t threads, calib_tokens, calib_seq;
    double damping;
    bool act_order, refine, resume, json, quiet;
};

static pdvm_status make_options(const struct arguments *a, struct convert_options *o,
                                pdvm_error *err) {
    o->method = a->method ? prune_method_find(a->method) : NULL;
    o->scope = a->scope < 0 ? PRUNE_SCOPE_DEFAULT : (enum prune_scope)a->scope;
    o->calibration.text = (struct calibration_options){
        .path = a->calib, .n_tokens = a->calib_tokens, .seq = a->calib_seq, .backend = a->backend};
    o->calibration.solver.damping = a->damping;
    o->calibration.solver.act_order = a->act_order;
    o->calibration.refine = a->refine;
    o->calibration.resume = a->resume;
    if (a->layer_sparsity &&
        layer_sparsity_parse(a->layer_sparsity, &o->calibration.layers, err) != PDVM_OK)
        return pd_prefix(err, PDVM_ERR_ARGUMENT, "--layer-sparsity");
    o->n_threads = (int)a->threads;
    o->plan.general = (struct settings){.values = a->values,
                                        .codebook = a->codebook,
                                        .index = a->index,
                                        .group = group_of(a->group),
                                        .sparsity = a->sparsity};
    o->plan.embed = a->embed;
    if (a->layers_file) PD_TRY(settings_add_file(&o->plan, a->layers_file, err));
    for (size_t i = 0; i < a->layers.n; i++) {
        PD_TRY(check_utf8("--layers", a->layers.items[i], strlen(a->layers.items[i]), err));
        PD_TRY(settings_add_rule(&o->plan, a->layers.items[i], err));
    }
    return PDVM_OK;
}

static void print_summary(const struct arguments *a, const struct convert_result *r,
                          double seconds) {
    char size[32], source[32], time[32], memory[32];
    double factor = r->file_bytes ? (double)r->source_bytes / (double)r->file_bytes : 0;
    print_report_table(stdout, &r->report);
    if (r->calibration.n_windows > 0)
        printf(
            "\ncalibrated on %lld tokens in windows of %lld, %lld of them different; products by "
            "%s\n",
            (long long)(r->calibration.n_windows * r->calibration.seq),
            (long long)r->calibration.seq, (long long)r->calibration.n_distinct,
            r->calibration.products);
    printf("\n%s: %s, %.2f times smaller than the source's %s (%s, %s of memory)\n", a->output,
           terminal_size(size, r->file_bytes), factor, terminal_size(source, r->source_bytes),
           terminal_duration(time, seconds), terminal_size(memory, peak_memory()));
}

static int print_summary_json(const struct arguments *a, const struct convert_result *r,
                              double seconds) {
    json_t *value = report_json(&r->report);
    if (value &&
        json_object_update_new(
            value, json_pack("{s:o, s:o, s:I, s:I, s:f, s:I}", "source",
                             json_text(a->source, strlen(a->source)), "output",
                             json_text(a->output, strlen(a->output)), "source_bytes",
                             (json_int_t)r->source_bytes, "file_bytes", (json_int_t)r->file_bytes,
                             "seconds", seconds, "peak_memory", (json_int_t)peak_memory())) != 0) {
        json_decref(value);
        value = NULL;
    }
    const struct convert_calibration_facts *f = &r->calibration;
    if (value && f->n_windows > 0)
        json_object_set_new(
            value, "calibration",
            json_pack("{s:I, s:I, s:I, s:I, s:I, s:b, s:s}", "tokens",
                      (json_int_t)(f->n_windows * f->seq), "window", (json_int_t)f->seq,
                      "distinct_tokens", (json_int_t)f->n_distinct, "resumed_layers",
                      (json_int_t)f->n_resumed, "activation_bytes", (json_int_t)f->memory,
                      "activations_in_file", f->in_file, "products", f->products));
    return print_json("convert", value);
}

static int convert(const struct arguments *a) {
    static char name[] = "convert";
    struct terminal_progress bar = {.quiet = a->quiet};
    struct convert_options o = convert_options_default();
    struct convert_result result = {0};
    pdvm_error err;
    double start = pd_seconds();
    o.notify = (struct pd_notify){.progress = terminal_progress, .progress_user = &bar};
    if (!a->quiet) {
        o.notify.log = terminal_log;
        o.notify.log_user = name;
    }
    pdvm_status status = make_options(a, &o, &err);
    if (status == PDVM_OK) status = convert_model(a->source, a->output, &o, &result, &err);
    terminal_progress_end(&bar);
    int code = CMD_OK;
    if (status != PDVM_OK) {
        code = terminal_fail("convert", &err);
        if (status == PDVM_ERR_ARGUMENT) code = CMD_USAGE;
    } else if (a->json) {
        code = print_summary_json(a, &result, pd_seconds() - start);
    } else if (!a->quiet) {
        print_summary(a, &result, pd_seconds() - start);
    }
    if (status == PDVM_OK && !result.has_tokenizer && !a->quiet)
        terminal_log(name, PDVM_LOG_WARN,
                     "the source has no tokenizer.json or tokenizer.model: the model will "
                     "not run on text");
    settings_free(&o.plan);
    convert_result_free(&result);
    return code;
}

/* "How weights become zero: ..." */
static void describe_methods(char *text, size_t size) {
    size_t n = (size_t)snprintf(text, size, "How weights become zero:");
    const struct prune_method *m;
    for (size_t i = 0; n < size && (m = prune_method_at(i)) != NULL; i++)
        n += (size_t)snprintf(text + n, size - n, "%s %s %s", i ? ";" : "", m->name, m->help);
    if (n < size) snprintf(text + n, size - n, ". [%s]", prune_method_at(0)->name);
}

int cmd_convert(int argc, char **argv) {
    struct arguments a = {.backend = "auto",
                          .sparsity = -1,
                          .scope = -1,
                          .damping = solver_options_default().damping,
                          .values = SETTING_UNSET,
                          .codebook = SETTING_UNSET,
                          .index = SETTING_UNSET,
                          .group = SETTING_UNSET,
                          .embed = SETTING_UNSET};
    char methods[512];
    const struct prune_method *method;
    pdvm_error err;
    describe_methods(methods, sizeof methods);
    const struct operand operands[] = {
        {"SOURCE", "A Hugging Face model directory, a GGUF file, or a .pdvm file to code anew.",
         &a.source, false},
        OPERAND_END};
    const struct option_spec options[] = {
        OPTION_STRING("-o, --output", "FILE", "The .pdvm file to write. Required.", &a.output),
        OPTION_GROUP("Zeros"),
        OPTION_STRING("--method", "METHOD", methods, &a.method),
        OPTION_REAL("--sparsity", "S",
                    "Share of zeros to reach, from 0 to below 1; zeros that are there count. For "
                    "methods other than keep.",
                    &a.sparsity, 0, 0.9999),
        OPTION_CHOICE(
            "--scope", "row|matrix|block",
            "Reach it in every row alone, in the matrix as a whole, or in all rows of each "
            "block of columns; not every method knows every scope. [row]",
            &a.scope, scope_names),
        OPTION_GROUP("Calibration"),
        OPTION_STRING("--calib", "FILE",
                      "The text to calibrate on: UTF-8, some megabytes of what the model is used "
                      "for. Names of special tokens in it stand for these tokens.",
                      &a.calib),
        OPTION_INT("--calib-tokens", "N",
                   "Tokens to use, in windows evenly spaced over the text. [262144]",
                   &a.calib_tokens, 1, INT32_MAX),
        OPTION_INT("--calib-seq", "N",
                   "Tokens of a window. [2048, or the model's context if that is shorter]",
                   &a.calib_seq, 1, 1 << 24),
        SHARED_OPTION_CALIBRATION_BACKEND(&a.backend),
        OPTION_STRING("--layer-sparsity", "RULE",
                      "How layers share the sparsity: uniform; owl[:M[,RANGE]], fewer zeros where "
                      "more scores are above M times the mean (5), at most RANGE (0.08) from the "
                      "target; damage[:RANGE], the least sum of the outputs' errors. The mean is "
                      "always --sparsity. [uniform]",
                      &a.layer_sparsity),
        OPTION_REAL("--damping", "X",
                    "Added to the diagonal of the inputs' Hessian, as a share of its mean. [0.01]",
                    &a.damping, 0, 1000),
        OPTION_FLAG("--act-order",
                    "Let SparseGPT take the columns with the strongest inputs first.",
                    &a.act_order),
        OPTION_FLAG("--refine",
                    "Keep the zeros that the method chooses, but fit the other weights to the "
                    "outputs by conjugate gradients; also for magnitude. admm does it by itself.",
                    &a.refine),
        OPTION_FLAG("--resume", "Go on with the finished layers of an interrupted run.", &a.resume),
        OPTION_GROUP("Coding"),
        OPTION_CHOICE("--values", "TYPE",
                      "How weights are stored: f32, bf16, f16, int8 (times a scale), lut8 or lut4 "
                      "(8 or 4 bits that choose from a codebook, times a scale). [int8]",
                      &a.values, value_names),
        OPTION_CHOICE("--codebook", "KIND",
                      "What lut8 and lut4 choose from: linear, prime (signed reciprocals of "
                      "primes), learned from the matrix's weights. [learned]",
                      &a.codebook, codebook_names),
        SHARED_OPTION_GROUP(&a.group),
        OPTION_CHOICE("--index", "KIND",
                      "How the places of the weights that are not zero are stored: dense, bitmap, "
                      "delta8, delta4, or auto, the smallest for each matrix. [auto]",
                      &a.index, index_names),
        SHARED_OPTION_EMBED(&a.embed),
        OPTION_LIST("--layers", "PATTERN=...", "Other settings for some matrices, see above.",
                    &a.layers),
        OPTION_STRING("--layers-file", "FILE",
                      "Such settings from a file, one a line (pdvm plan --settings writes one); "
                      "--layers come after them.",
                      &a.layers_file),
        OPTION_GROUP("Other"),
        OPTION_INT("-t, --threads", "N",
                   "Threads; 0 is one per physical core. The file does not depend on it. [0]",
                   &a.threads, 0, 1024),
        OPTION_FLAG("--json", "Print the summary as JSON, with every tensor.", &a.json),
        OPTION_FLAG("-q, --quiet", "No progress, and no summary unless as JSON.", &a.quiet),
        OPTION_END,
    };
    const struct options_page page = {.command = "convert",
                                      .usage = "SOURCE -o FILE [OPTIONS]",
                                      .description = description,
                                      .operands = operands,
                                      .options = options,
                                      .examples = examples};
    int code = options_parse(&page, argc, argv);
    if (code == OPTIONS_GO_ON) {
        if (!a.source)
            code = options_error(&page, "no source: pdvm convert SOURCE -o FILE");
        else if (!a.output)
            code = options_error(&page, "no output: give the file to write with -o FILE");
        else if (a.method && find_method("--method", a.method, &method, &err) != PDVM_OK)
            code = options_error(&page, "%s", err.message);
        else
            code = convert(&a);
    }
    option_list_free(&a.layers);
    return code;
}
