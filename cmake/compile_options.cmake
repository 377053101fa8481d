# pdvm_compile_options: what every translation unit of the project is compiled with.

add_library(pdvm_compile_options INTERFACE)
target_compile_definitions(pdvm_compile_options INTERFACE _GNU_SOURCE)
target_compile_options(pdvm_compile_options INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wstrict-prototypes -Wmissing-prototypes
  # The same additions and products in every build and on every kernel: no silent fused
  # multiply-add, so that scalar code is a reference the vector kernels can be compared with.
  -ffp-contract=off)
if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
  # snprintf into a fixed buffer is how messages are cut to size.
  target_compile_options(pdvm_compile_options INTERFACE -Wno-format-truncation)
endif()
if(PDVM_WERROR)
  target_compile_options(pdvm_compile_options INTERFACE -Werror)
endif()

if(PDVM_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "PDVM_FUZZ needs clang (libFuzzer); the compiler is "
      "${CMAKE_C_COMPILER_ID}. Run scripts/setup.sh --dev, then: cmake --preset fuzz")
  endif()
  set(PDVM_SANITIZE "address,undefined")
  target_compile_options(pdvm_compile_options INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(PDVM_SANITIZE)
  # -Werror is off in these presets: instrumented code makes gcc warn of what isn't there.
  target_compile_options(pdvm_compile_options INTERFACE
    -fsanitize=${PDVM_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  # Global: the shared library and the examples must link the same runtime.
  add_link_options(-fsanitize=${PDVM_SANITIZE})
endif()

if(PDVM_COVERAGE)
  target_compile_options(pdvm_compile_options INTERFACE --coverage)
  add_link_options(--coverage)
endif()
