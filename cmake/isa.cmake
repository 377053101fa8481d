# Instruction sets by file name: *_amx.c, *_avx512.c, *_avxvnni.c, *_avx2.c (x86-64) and *_neon.c (AArch64)
# are compiled with the flags of that set and only where it exists; which of them runs is decided at run time.
# PDVM_ISA_DEFINITIONS tells the code what was compiled in: PDVM_HAVE_AMX, _AVX512, _AVXVNNI,
# _AVX2, _NEON.

include(CheckCCompilerFlag)

set(PDVM_AVX2_FLAGS -mavx2 -mfma -mf16c -mbmi2 -mpopcnt)
set(PDVM_AVXVNNI_FLAGS ${PDVM_AVX2_FLAGS} -mavxvnni)
set(PDVM_AVX512_FLAGS -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vbmi2
    -mavx512vnni -mgfni -mfma -mf16c -mbmi2 -mpopcnt)
set(PDVM_AMX_FLAGS ${PDVM_AVX512_FLAGS} -mamx-tile -mamx-int8 -mamx-bf16)
set(PDVM_NEON_FLAGS -march=armv8.2-a+dotprod)

set(PDVM_ISA_DEFINITIONS "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  list(JOIN PDVM_AVX2_FLAGS " " flags)
  check_c_compiler_flag("${flags}" PDVM_COMPILER_HAS_AVX2)
  list(JOIN PDVM_AVXVNNI_FLAGS " " flags)
  check_c_compiler_flag("${flags}" PDVM_COMPILER_HAS_AVXVNNI)
  list(JOIN PDVM_AVX512_FLAGS " " flags)
  check_c_compiler_flag("${flags}" PDVM_COMPILER_HAS_AVX512)
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux") # other systems are asked for the tiles in other ways
    list(JOIN PDVM_AMX_FLAGS " " flags)
    check_c_compiler_flag("${flags}" PDVM_COMPILER_HAS_AMX)
  endif()
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  check_c_compiler_flag("${PDVM_NEON_FLAGS}" PDVM_COMPILER_HAS_NEON)
endif()
foreach(isa AMX AVX512 AVXVNNI AVX2 NEON)
  if(PDVM_COMPILER_HAS_${isa})
    list(APPEND PDVM_ISA_DEFINITIONS PDVM_HAVE_${isa}=1)
  endif()
endforeach()

# pdvm_apply_isa(LIST): give each file in the variable LIST its flags, drop what cannot be compiled.
macro(pdvm_apply_isa list)
  foreach(isa AMX AVX512 AVXVNNI AVX2 NEON)
    string(TOLOWER "_${isa}.c" suffix)
    set(matching ${${list}})
    list(FILTER matching INCLUDE REGEX "${suffix}$")
    if(PDVM_COMPILER_HAS_${isa})
      foreach(file IN LISTS matching)
        set_source_files_properties("${file}" PROPERTIES COMPILE_OPTIONS "${PDVM_${isa}_FLAGS}")
      endforeach()
    elseif(matching)
      list(REMOVE_ITEM ${list} ${matching})
    endif()
  endforeach()
endmacro()
