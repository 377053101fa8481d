#!/usr/bin/env bash
# Installs what a build of pdvm needs and is not there yet. Does nothing, quickly, when all is there.
# Works with apt (Debian 12, Ubuntu 24.04), dnf (Fedora, RHEL) and brew (macOS), as root or by sudo.

set -euo pipefail

usage() {
    cat <<'EOF'
Usage: scripts/setup.sh [--dev]

Installs the packages that building and testing pdvm needs: a C compiler, make, cmake, ninja,
pkg-config, git, jansson, PCRE2, utf8proc, libedit and cmocka, and OpenBLAS, which 'pdvm convert' loads
when it calibrates. Only what is missing is installed.

  --dev   also what development needs: clang with its sanitizer runtimes and libFuzzer,
          clang-format, clang-tidy, cppcheck, shellcheck; on x86-64 with apt a
          cross compiler for AArch64 and qemu, which run the tests of its kernels
  --help  show this text
EOF
}

dev=0
for argument in "$@"; do
    case $argument in
    --dev) dev=1 ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "setup: unknown argument '$argument'" >&2
        usage >&2
        exit 2
        ;;
    esac
done

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# A compiler without the C library's headers is of no use, so compile and link something.
can_compile() {
    have cc && printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
        cc -x c -o /dev/null - >/dev/null 2>&1
}

cmake_is_recent() {
    have cmake && cmake --version | awk 'NR == 1 {
        split($3, v, "."); exit !(v[1] > 3 || (v[1] == 3 && v[2] >= 22)) }'
}

has_module() { have pkg-config && pkg-config --exists "$1"; }

# Loaded at run time, so the library is enough.
has_openblas() {
    { have ldconfig || [ -x /sbin/ldconfig ]; } &&
        PATH=$PATH:/sbin ldconfig -p | grep -E 'libopenblasp?\.so' >/dev/null && return
    [ -e /opt/homebrew/opt/openblas/lib/libopenblas.dylib ] ||
        [ -e /usr/local/opt/openblas/lib/libopenblas.dylib ]
}

# gcc's sanitizer runtimes are packages of their own on some systems.
can_sanitize() {
    printf 'int main(void) { return 0; }\n' |
        cc -x c -fsanitize=address,undefined -o /dev/null - >/dev/null 2>&1 &&
        printf 'int main(void) { return 0; }\n' |
        cc -x c -fsanitize=thread -o /dev/null - >/dev/null 2>&1
}

# Whether packages of a cross compiler with a C library are to be had here: on Fedora it has none.
can_cross_build() {
    [ "$(uname -m)" = x86_64 ] && have apt-get
}

can_fuzz() {
    have clang && printf 'int LLVMFuzzerTestOneInput(const char *p, long n) { return p == 0 && n; }\n' |
        clang -x c -fsanitize=fuzzer,address,undefined -o /dev/null - >/dev/null 2>&1
}

# Prints one word for each thing that is missing.
missing_things() {
    can_compile || echo compiler
    have make || echo make
    cmake_is_recent || echo cmake
    have ninja || echo ninja
    have pkg-config || echo pkg-config
    have git || echo git
    has_module "jansson >= 2.12" || echo jansson
    has_module "libpcre2-8 >= 10.30" || echo pcre2
    has_module "libutf8proc >= 2.5" || echo utf8proc
    has_module "libedit >= 3.1" || echo libedit
    has_module "cmocka >= 1.1.5" || echo cmocka
    has_openblas || echo openblas
    if [ "$dev" = 1 ]; then
        have clang || echo clang
        can_fuzz || echo clang-runtime
        can_sanitize || echo sanitizers
        have clang-format || echo clang-format
        have clang-tidy || echo clang-tidy
        have cppcheck || echo cppcheck
        have shellcheck || echo shellcheck
        if can_cross_build; then
            have aarch64-linux-gnu-gcc || echo cross-compiler
            have qemu-aarch64 || echo qemu
        fi
    fi
}

package_manager() {
    local manager
    for manager in apt-get dnf brew; do
        if have "$manager"; then
            echo "$manager"
            return
        fi
    done
    echo none
}

# Older releases name the runtimes only with their version: libclang-rt-18-dev.
apt_clang_runtime() {
    if apt-cache show libclang-rt-dev >/dev/null 2>&1; then
        echo libclang-rt-dev
    else
        apt-cache depends clang 2>/dev/null |
            sed -n 's/^ *Depends: clang-\([0-9][0-9]*\)$/libclang-rt-\1-dev/p' | sed 1q
    fi
}

# package_for MANAGER THING: the packages that bring it.
package_for() {
    case $1:$2 in
    apt-get:compiler) echo build-essential ;;
    apt-get:ninja) echo ninja-build ;;
    apt-get:jansson) echo libjansson-dev ;;
    apt-get:pcre2) echo libpcre2-dev ;;
    apt-get:utf8proc) echo libutf8proc-dev ;;
    apt-get:libedit) echo libedit-dev ;;
    apt-get:cmocka) echo libcmocka-dev ;;
    apt-get:openblas) echo libopenblas0 ;;
    apt-get:clang-runtime) apt_clang_runtime ;;
    apt-get:sanitizers) echo build-essential ;;
    apt-get:cross-compiler) echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross ;;
    apt-get:qemu) echo qemu-user ;;

    dnf:compiler) echo gcc glibc-devel ;;
    dnf:ninja) echo ninja-build ;;
    dnf:pkg-config) echo pkgconf-pkg-config ;;
    dnf:jansson) echo jansson-devel ;;
    dnf:pcre2) echo pcre2-devel ;;
    dnf:utf8proc) echo utf8proc-devel ;;
    dnf:libedit) echo libedit-devel ;;
    dnf:cmocka) echo libcmocka-devel ;;
    dnf:openblas) echo openblas-threads ;;
    dnf:clang-runtime) echo compiler-rt ;;
    dnf:sanitizers) echo libasan libubsan libtsan ;;
    dnf:clang-format | dnf:clang-tidy) echo clang-tools-extra ;;
    dnf:shellcheck) echo ShellCheck ;;

    brew:pkg-config) echo pkgconf ;;
    brew:clang | brew:clang-runtime | brew:clang-tidy) echo llvm ;;
    brew:compiler | brew:make | brew:sanitizers)
        # These belong to the system on macOS.
        ;;

    *) echo "$2" ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

# Stops with advice unless commands can be run as root without asking anybody who is not there.
need_root() {
    if [ "$(id -u)" = 0 ]; then
        return
    fi
    if have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        return
    fi
    fail "installing packages needs root, and sudo cannot be used here." \
        "Run this as root, then try again:" "  $*"
}

retry() {
    local attempt
    for attempt in 1 2 3; do
        if "$@"; then
            return 0
        fi
        if [ "$attempt" != 3 ]; then
            say "failed (attempt $attempt of 3), trying again in $((attempt * 5)) s: $*"
            sleep $((attempt * 5))
        fi
    done
    return 1
}

packages_for() {
    local thing
    for thing in $2; do
        package_for "$1" "$thing"
    done | tr ' ' '\n' | awk 'NF && !seen[$0]++' | paste -sd ' ' -
}

# Package lists are split on purpose: none of these names holds a space.
# shellcheck disable=SC2086
install_with_apt() {
    local options="-qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0" packages
    packages=$(packages_for apt-get "$1")
    need_root "apt-get update && apt-get install $packages"
    say "apt-get update"
    # A list that cannot be fetched need not be one that is needed: let the installation decide.
    retry as_root apt-get $options -o APT::Update::Error-Mode=any update ||
        say "apt-get update failed, trying with the package lists that are here"
    packages=$(packages_for apt-get "$1") # the names may depend on the fresh package lists
    say "apt-get install $packages"
    retry as_root env DEBIAN_FRONTEND=noninteractive apt-get $options -y \
        --no-install-recommends install $packages >/dev/null ||
        fail "apt-get could not install: $packages" \
            "See the messages above. Check the network and /etc/apt/sources.list, then run" \
            "scripts/setup.sh again; 'apt-get -f install' repairs a broken state."
}

# shellcheck disable=SC2086
install_with_dnf() {
    local packages
    packages=$(packages_for dnf "$1")
    need_root "dnf install $packages"
    say "dnf install $packages"
    retry as_root dnf -q -y --setopt=install_weak_deps=False install $packages ||
        fail "dnf could not install: $packages" \
            "See its messages above. On RHEL and its kin some of them are in the repositories CRB" \
            "and EPEL: dnf config-manager --set-enabled crb; dnf install epel-release"
}

# shellcheck disable=SC2086
install_with_brew() {
    local packages
    case " $1 " in
    *" compiler "* | *" make "*)
        fail "there is no C compiler. Run 'xcode-select --install', then scripts/setup.sh again."
        ;;
    esac
    packages=$(packages_for brew "$1")
    if [ -z "$packages" ]; then
        return
    fi
    say "brew install $packages"
    HOMEBREW_NO_AUTO_UPDATE=1 HOMEBREW_NO_ENV_HINTS=1 retry brew install --quiet $packages ||
        fail "brew could not install: $packages" \
            "See its messages above; 'brew update' and 'brew doctor' help with most of them."
    case " $packages " in
    *" llvm "*)
        # Homebrew keeps llvm out of the way of Apple's clang.
        PATH="$(brew --prefix llvm)/bin:$PATH"
        say "add $(brew --prefix llvm)/bin to your PATH for clang-tidy and libFuzzer"
        ;;
    esac
}

missing=$(missing_things | paste -sd ' ' -)
if [ -z "$missing" ]; then
    say "all that is needed is there"
    exit 0
fi
say "missing: $missing"

manager=$(package_manager)
case $manager in
apt-get) install_with_apt "$missing" ;;
dnf) install_with_dnf "$missing" ;;
brew) install_with_brew "$missing" ;;
none)
    fail "none of apt-get, dnf and brew is here, so please install by hand: $missing" \
        "(libraries with their headers and pkg-config files)"
    ;;
esac

hash -r
missing=$(missing_things | paste -sd ' ' -)
if [ -n "$missing" ]; then
    fail "still missing or too old after the installation: $missing" \
        "pdvm needs cmake 3.22, jansson 2.12, PCRE2 10.30, utf8proc 2.5, libedit 3.1 and cmocka 1.1.5" \
        "or newer;" \
        "'pkg-config --modversion NAME' shows what is found, PKG_CONFIG_PATH where it looks."
fi
say "done"
