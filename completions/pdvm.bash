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

_pdvm() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local commands="convert run inspect unpack tokenize eval help version"
    COMPREPLY=()

    if [ "$COMP_CWORD" -eq 1 ]; then
        _pdvm_words "$commands --help --version"
        return
    fi

    local command=${COMP_WORDS[1]}
    # The values of a flag that takes one; "--flag=value" is left to the user.
    case $command:$prev in
    convert:--method) _pdvm_words keep magnitude && return ;;
    convert:--values) _pdvm_words f32 bf16 f16 int8 lut8 lut4 && return ;;
    convert:--codebook) _pdvm_words linear prime learned && return ;;
    convert:--group) _pdvm_words 0 32 64 128 256 && return ;;
    convert:--index) _pdvm_words auto dense bitmap delta8 delta4 && return ;;
    convert:--embedding) _pdvm_words int8 f16 && return ;;
    run:--mode) _pdvm_words token layer phase unfused && return ;;
    run:-ctk | run:-ctv | run:--cache-type-k | run:--cache-type-v)
        _pdvm_words f32 f16 int8 && return
        ;;
    unpack:-o | unpack:--output) _pdvm_directories && return ;;
    *:-o | *:--output | *:-m | *:--model | *:-f | *:--file | *:--text | *:--session | \
        *:--save-logits) _pdvm_files && return ;;
    *:-p | *:--prompt | *:-n | *:--predict | *:-c | *:--ctx-size | *:-t | *:--threads | *:-s | \
        *:--seed | *:--temp | *:--top-k | *:--top-p | *:--min-p | *:--typical | \
        *:--repeat-penalty | *:--repeat-last-n | *:--frequency-penalty | *:--presence-penalty | \
        *:-l | *:--logit-bias | *:--stop | *:--keep | *:--sparsity | *:--layers | *:--stride)
        return
        ;;
    esac

    if [[ $cur != -* ]]; then
        case $command in
        help) _pdvm_words "$commands" ;;
        version) ;;
        *) _pdvm_files ;;
        esac
        return
    fi

    local flags="--help"
    case $command in
    convert)
        flags+=" -o --output --method --sparsity --values --codebook --group --index --embedding
            --layers -t --threads -q --quiet"
        ;;
    run)
        flags+=" -m --model -p --prompt -f --file -n --predict -c --ctx-size -t --threads -s --seed
            --temp --top-k --top-p --min-p --typical --repeat-penalty --repeat-last-n
            --frequency-penalty --presence-penalty -l --logit-bias --stop --ignore-eos -ctk
            --cache-type-k -ctv --cache-type-v --rolling --keep --session --mode"
        ;;
    inspect) flags+=" --json" ;;
    unpack) flags+=" -o --output" ;;
    tokenize) flags+=" -p --prompt -f --file --ids --json" ;;
    eval)
        flags+=" --text -c --ctx-size --stride -t --threads --json --tokens --save-logits"
        ;;
    esac
    _pdvm_words "$flags"
}

complete -F _pdvm pdvm
