# bash completion for pdvm

# _pdvm_words WORD...: offer these words.
_pdvm_words() {
    mapfile -t COMPREPLY < <(compgen -W "$*" -- "$cur")
}

# _pdvm_files: offer files and directories, with bash's own quoting of their names.
_pdvm_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
}

_pdvm_directories() {
    compopt -o filenames 2>/dev/null
    mapfile -t COMPREPLY < <(compgen -d -- "$cur")
}

# _pdvm_flags COMMAND: sets flags to what the command understands.
_pdvm_flags() {
    flags="--help"
    case $1 in
    run)
        flags+=" -m --model -p --prompt -f --file -e --escape -n --predict -r --reverse-prompt
            --ignore-eos -c --ctx-size --rolling --keep --session -l --logit-bias --repeat-penalty
            --repeat-last-n --frequency-penalty --presence-penalty --top-k --typical --top-p --min-p
            --temp -s --seed --no-display-prompt -o --output --json -q --quiet -v --verbose
            -t --threads -b --batch-size --prompt-activations -ctk --cache-type-k -ctv --cache-type-v --mode --backend --kernels --cache-packed"
        ;;
    chat)
        flags+=" -m --model -p --prompt -sys --system --chat-template -n --predict
            -r --reverse-prompt --ignore-eos -c --ctx-size --rolling --keep -l --logit-bias
            --repeat-penalty --repeat-last-n --frequency-penalty --presence-penalty --top-k --typical
            --top-p --min-p --temp -s --seed -q --quiet -v --verbose -t --threads -b --batch-size --prompt-activations
            -ctk --cache-type-k -ctv --cache-type-v --mode --backend --kernels --cache-packed"
        ;;
    convert)
        flags+=" -o --output --method --sparsity --scope --calib --calib-tokens --calib-seq
            --backend --layer-sparsity --damping --act-order --refine --resume --values --codebook --group --index
            --embed --layers --layers-file -t --threads --json -q --quiet"
        ;;
    inspect) flags+=" --check --json --ascii -t --threads -q --quiet" ;;
    unpack) flags+=" -o --output --dtype --force -t --threads -q --quiet" ;;
    tokenize)
        flags+=" -m --model -p --prompt -f --file --ids --pieces --count -o --output --json --no-bos
            --no-parse-special --decode --special"
        ;;
    eval)
        flags+=" -m --model -f --text --protocol -c --ctx-size --stride --max-tokens --reference
            --kl-base --save-logits --values -o --output --json --per-token -q --quiet -v --verbose -t --threads -b --batch-size --prompt-activations -ctk
            --cache-type-k -ctv --cache-type-v --backend --kernels --cache-packed"
        ;;
    plan)
        flags+=" --budget --speed --max-loss --calib -f --text --windows -c --ctx-size --calib-tokens
            --calib-seq --method --sparsity --values --group --embed --quick --layers-per-group
            --front --speed-tokens --apply --settings --svg -o --output --json -q --quiet
            -v --verbose -t --threads --kernels --backend"
        ;;
    sweep)
        flags+=" --methods --sparsity --values --group --embed -f --text --calib --calib-tokens
            --calib-seq --protocol -c --ctx-size --max-tokens --speed-tokens --results -o --output
            --json -q --quiet -v --verbose -t --threads --kernels --backend"
        ;;
    bench)
        flags+=" -m --model --shape --sparsity --values --codebook --group -p --n-prompt -n --n-gen -d --n-depth
            -t --threads -r --repetitions --mode --modes --sync --graph --per-launch --pdvm-table --phases -s --seed -o --output --json
            --compare -q --quiet -v --verbose -b --batch-size --prompt-activations -ctk --cache-type-k -ctv
            --cache-type-v --backend --kernels --cache-packed"
        ;;
    esac
}

_pdvm_shapes="tiny smollm2-135m smollm2-1.7b tinyllama-1.1b llama2-7b llama2-13b llama2-70b llama3-8b
    llama3.2-1b llama3.2-3b mistral-7b qwen2.5-0.5b qwen2.5-1.5b qwen2.5-7b qwen3-0.6b qwen3-1.7b
    qwen3-4b qwen3-8b phi3-mini"


# _pdvm_value COMMAND FLAG: offers values for the flag; fails if it takes none.
_pdvm_value() {
    case $1:$2 in
    plan:--method) _pdvm_words keep magnitude wanda sparsegpt admm ;;
    plan:--group | sweep:--group) _pdvm_words 0 32 64 128 256 ;;
    plan:--embed | sweep:--embed) _pdvm_words int8 f16 bf16 f32 ;;
    plan:--values | sweep:--values) _pdvm_words int8 lut4 int8,lut4 ;;
    sweep:--methods) _pdvm_words keep magnitude wanda sparsegpt admm ;;
    sweep:--protocol) _pdvm_words sliding llama.cpp papers ;;
    sweep:-o | sweep:--output) _pdvm_words md csv json ;;
    plan:--calib | plan:--apply | plan:--settings | plan:--svg | sweep:--calib | sweep:--results)
        _pdvm_files
        ;;
    plan:--budget | plan:--speed | plan:--max-loss | plan:--windows | plan:--layers-per-group | plan:--front | *:--speed-tokens) ;;
    bench:--shape) _pdvm_words "$_pdvm_shapes" ;;
    bench:--values) _pdvm_words int8 lut4 lut8 f16 bf16 f32 ;;
    bench:--codebook) _pdvm_words learned linear ;;
    bench:--group) _pdvm_words 0 32 64 128 256 ;;
    bench:--mode) _pdvm_words token layer phase unfused ;;
    bench:-o | bench:--output) _pdvm_words md csv json ;;
    bench:--compare) _pdvm_files ;;
    bench:--n-prompt | bench:--n-gen | bench:-d | bench:--n-depth | bench:--repetitions) ;;
    convert:--method) _pdvm_words keep magnitude wanda sparsegpt admm ;;
    convert:--scope) _pdvm_words row matrix block ;;
    convert:--layer-sparsity) _pdvm_words uniform owl damage ;;
    convert:--values) _pdvm_words f32 bf16 f16 int8 lut8 lut4 ;;
    eval:--values) _pdvm_words f32 bf16 f16 int8 lut8 lut4 source ;;
    eval:--protocol) _pdvm_words sliding llama.cpp papers ;;
    convert:--codebook) _pdvm_words linear prime learned ;;
    convert:--group) _pdvm_words 0 32 64 128 256 ;;
    convert:--index) _pdvm_words auto dense bitmap delta8 delta4 ;;
    convert:--embed) _pdvm_words int8 f16 bf16 f32 ;;
    chat:--chat-template)
        _pdvm_words llama-2 llama-3 llama-3.1 chatml qwen-3 mistral-v0.1 mistral-v0.2 mistral-v1 \
            mistral-v3 mistral-v3-tekken mistral-v7 mistral-v7-tekken zephyr phi-3 gemma command-r
        ;;
    run:--mode | chat:--mode) _pdvm_words token layer phase unfused ;;
    *:--prompt-activations) _pdvm_words 16 8 ;;
    *:--backend) _pdvm_words auto cpu cuda ;;
    *:--kernels) _pdvm_words auto scalar neon avx2 avxvnni avx512 amx ;;
    *:-ctk | *:-ctv | *:--cache-type-k | *:--cache-type-v) _pdvm_words f32 f16 int8 ;;
    unpack:--dtype) _pdvm_words f32 bf16 f16 ;;
    unpack:-o | unpack:--output) _pdvm_directories ;;
    convert:-o | convert:--output | convert:--calib | convert:--layers-file) _pdvm_files ;;
    *:-o | *:--output) _pdvm_words text json ;;
    *:-m | *:--model | *:-f | *:--file | *:--text | *:--session | *:--save-logits | \
        *:--kl-base | *:--reference) _pdvm_files ;;
    *:-p | *:--prompt | *:-n | *:--predict | *:-r | *:--reverse-prompt | *:-c | *:--ctx-size | \
        *:-t | *:--threads | *:-b | *:--batch-size | *:-s | *:--seed | *:--keep | *:-l | \
        *:--logit-bias | *:--temp | *:--top-k | *:--top-p | *:--min-p | *:--typical | \
        *:--repeat-penalty | *:--repeat-last-n | *:--frequency-penalty | *:--presence-penalty | \
        *:-sys | *:--system | *:--sparsity | *:--layers | *:--stride | *:--max-tokens | *:--decode | \
        *:--calib-tokens | *:--calib-seq | *:--damping) ;;
    *) return 1 ;;
    esac
}

_pdvm() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} flags
    local commands="run chat convert inspect unpack tokenize eval plan sweep bench help version"
    COMPREPLY=()

    if [ "$COMP_CWORD" -eq 1 ]; then
        _pdvm_words "$commands --help --version"
        return
    fi

    local command=${COMP_WORDS[1]}
    # "--flag=value" is left to the user.
    if _pdvm_value "$command" "$prev"; then
        return
    fi
    if [[ $cur == -* ]]; then
        _pdvm_flags "$command"
        _pdvm_words "$flags"
        return
    fi
    case $command in
    help) _pdvm_words "$commands" ;;
    version) ;;
    *) _pdvm_files ;;
    esac
}

complete -F _pdvm pdvm
