#!/usr/bin/env bash
# The OpenCL branch of the kernels' dialect is valid OpenCL C, and scripts/check_spills.sh reads what
# ptxas says (here a program that says the same).
# ctest: timeout=60

. "$SOURCE_DIR/tests/support/cli.sh"

if command -v clang >/dev/null; then
    expect 0 clang -fsyntax-only -x cl -cl-std=CL2.0 -target spir64-unknown-unknown \
        -Xclang -finclude-default-header -Wall -Werror -I "$SOURCE_DIR/src/kernels" \
        "$SOURCE_DIR/src/kernels/pdvm.k"
else
    echo "clang is not installed: OpenCL C was not checked"
fi

# say STORES LOADS: an nvcc whose second function has these.
say() {
    cat >nvcc <<END
#!/bin/sh
cat <<TEXT
ptxas info    : Compiling entry function 'pdvm_phase' for 'sm_90'
ptxas info    : Function properties for pdvm_phase
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers
ptxas info    : Function properties for pdvm_token
    48 bytes stack frame, $1 bytes spill stores, $2 bytes spill loads
TEXT
END
    chmod +x nvcc
}
export NVCC=$PWD/nvcc
say 0 0
expect 0 "$SOURCE_DIR/scripts/check_spills.sh" 90
out_has "sm_90 pdvm_token: 0 bytes of spill stores, 0 of loads"
say 16 0
expect 1 "$SOURCE_DIR/scripts/check_spills.sh" 90
out_has "sm_90 pdvm_token: 16 bytes of spill stores"
say 0 8
expect 1 "$SOURCE_DIR/scripts/check_spills.sh" 90
printf '#!/bin/sh\necho "Cuda compilation tools, release 11.8, V11.8.89"\n' >nvcc
expect 0 "$SOURCE_DIR/scripts/check_spills.sh" 90
out_has "skipped, nvcc is release 11.8"
printf '#!/bin/sh\necho "nothing of the kind"\n' >nvcc
expect 1 "$SOURCE_DIR/scripts/check_spills.sh" 90
printf '#!/bin/sh\necho "error: no" >&2\nexit 2\n' >nvcc
expect 1 "$SOURCE_DIR/scripts/check_spills.sh" 90
err_has "nvcc failed"
