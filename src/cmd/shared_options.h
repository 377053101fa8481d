/**
 * Options that several commands have, with one text for all: entries for a table of struct
 * option_spec. The arguments are the addresses that OPTION_STRING and so on take.
 */
#ifndef PDVM_CMD_SHARED_OPTIONS_H
#define PDVM_CMD_SHARED_OPTIONS_H

#include "cmd/common.h"
#include "cmd/options.h"

/* ---- coding: choices of common.h -------------------------------------------------------- */

#define SHARED_OPTION_GROUP(int_p)                                                                 \
    OPTION_CHOICE("--group", "N",                                                                  \
                  "Columns that share a scale: 32, 64, 128, 256, or 0 for one scale per row. [64 " \
                  "for lut4, else 0]",                                                             \
                  int_p, group_names)
#define SHARED_OPTION_EMBED(int_p)                                                                 \
    OPTION_CHOICE("--embed, --embedding", "TYPE",                                                  \
                  "How the embedding and the head are stored: int8, f16, bf16, f32. [int8]",       \
                  int_p, embed_names)
#define SHARED_OPTION_VALUES(string_p)                                                             \
    OPTION_STRING("--values", "LIST",                                                              \
                  "Value codings: int8, lut8, lut4, f16, bf16, f32. [int8,lut4]", string_p)

/* ---- output ------------------------------------------------------------------------------ */

#define SHARED_OPTION_JSON(bool_p) OPTION_FLAG("--json", "The same as -o json.", bool_p)
#define SHARED_OPTION_QUIET(bool_p) OPTION_FLAG("-q, --quiet", "Show no progress.", bool_p)
#define SHARED_OPTION_VERBOSE(bool_p)                                                              \
    OPTION_FLAG("-v, --verbose", "Print what the engine has to say.", bool_p)

/* ---- the engine -------------------------------------------------------------------------- */

#define SHARED_OPTION_THREADS(int64_p)                                                             \
    OPTION_INT("-t, --threads", "N", "Threads; 0 is one per physical core. [0]", int64_p, 0, 1024)
#define SHARED_OPTION_ACTIVATIONS(int_p)                                                           \
    OPTION_CHOICE("--prompt-activations", "BITS",                                                  \
                  "Precision where several tokens are computed together: 16, or 8, which is "      \
                  "faster and less accurate. [16]",                                                \
                  int_p, activation_names)
#define SHARED_OPTION_TYPE_K(int_p)                                                                \
    OPTION_CHOICE("-ctk, --cache-type-k", "TYPE",                                                  \
                  "How the keys in the KV cache are stored: f32, f16, int8 (also called q8_0). "   \
                  "[f16]",                                                                         \
                  int_p, kv_type_names)
#define SHARED_OPTION_TYPE_V(int_p)                                                                \
    OPTION_CHOICE("-ctv, --cache-type-v", "TYPE",                                                  \
                  "How the values in the KV cache are stored. [f16]", int_p, kv_type_names)
#define SHARED_OPTION_BACKEND(string_p)                                                            \
    OPTION_STRING("--backend", "NAME",                                                             \
                  "Where to compute: auto (a GPU that the model fits, else the CPU), cpu, cuda. "  \
                  "[auto]",                                                                        \
                  string_p)
#define SHARED_OPTION_CALIBRATION_BACKEND(string_p)                                                \
    OPTION_STRING("--backend", "NAME",                                                             \
                  "Where calibration computes its large products: auto (a GPU if there is one "    \
                  "with cuBLAS and memory enough, else the CPU), cpu, cuda. [auto]",               \
                  string_p)
#define SHARED_OPTION_KERNELS(string_p)                                                            \
    OPTION_STRING("--kernels", "SET",                                                              \
                  "Instruction set of the kernels: auto, scalar, neon, avx2, avxvnni, avx512, "    \
                  "amx. [auto]",                                                                   \
                  string_p)
#define SHARED_OPTION_CACHE_PACKED(bool_p)                                                         \
    OPTION_FLAG("--cache-packed",                                                                  \
                "Keep the weights as packed for this machine in a file beside the model, or in "   \
                "the user's cache directory, and start from it the next time.",                    \
                bool_p)

#endif
