# GPU kernels: src/kernels is compiled by nvcc, where there is one, into a fat binary that becomes
# part of the library. Nothing of CUDA is linked: the driver is looked for at run time.

option(PDVM_CUDA "Compile the GPU kernels if nvcc is found" ON)
set(PDVM_CUDA_ARCHITECTURES "75;80;86;89;90" CACHE STRING
    "Compute capabilities to compile for; PTX of the last one serves newer GPUs")
set(PDVM_CUDA_FATBIN "")

if(PDVM_CUDA)
  find_program(PDVM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda
               PATH_SUFFIXES bin)
endif()
# Loads and stores of 128 bits as one (PTX 8.3) came with 12.3.
set(nvcc_release "")
set(nvcc_needed 12.3)
if(PDVM_CUDA AND PDVM_NVCC)
  execute_process(COMMAND "${PDVM_NVCC}" --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(nvcc_release ${CMAKE_MATCH_1})
  endif()
endif()
if(nvcc_release AND nvcc_release VERSION_LESS nvcc_needed)
  message(STATUS "GPU kernels: left out, ${PDVM_NVCC} is release ${nvcc_release}, and ${nvcc_needed} "
                 "or newer is needed (the CPU backend is complete)")
elseif(PDVM_CUDA AND PDVM_NVCC)
  message(STATUS "GPU kernels: ${PDVM_NVCC} for ${PDVM_CUDA_ARCHITECTURES}")
  set(flags "")
  foreach(arch IN LISTS PDVM_CUDA_ARCHITECTURES)
    list(APPEND flags -gencode "arch=compute_${arch},code=sm_${arch}")
    set(newest ${arch})
  endforeach()
  list(APPEND flags -gencode "arch=compute_${newest},code=compute_${newest}")
  file(GLOB kernels CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/src/kernels/*")
  set(PDVM_CUDA_FATBIN "${PDVM_GENERATED_DIR}/kernels.fatbin")
  # 168 registers are what 384 threads a block have: the hot loops must not spill.
  add_custom_command(
    OUTPUT "${PDVM_CUDA_FATBIN}"
    COMMAND "${CMAKE_COMMAND}" -E make_directory "${PDVM_GENERATED_DIR}"
    COMMAND "${PDVM_NVCC}" -x cu -fatbin -O3 -fmad=false -std=c++17 ${flags} --threads 0
            -I "${PROJECT_SOURCE_DIR}/src/kernels" -o "${PDVM_CUDA_FATBIN}"
            "${PROJECT_SOURCE_DIR}/src/kernels/pdvm.k"
    DEPENDS ${kernels}
    COMMENT "Compiling the GPU kernels"
    VERBATIM)
  set(image "${PROJECT_SOURCE_DIR}/src/backend/cuda/kernels_image.c")
  set_property(SOURCE "${image}" APPEND PROPERTY OBJECT_DEPENDS "${PDVM_CUDA_FATBIN}")
  set_property(SOURCE "${image}" APPEND PROPERTY COMPILE_DEFINITIONS
    "PDVM_CUDA_FATBIN=\"${PDVM_CUDA_FATBIN}\"")
elseif(PDVM_CUDA)
  message(STATUS "GPU kernels: left out, nvcc was not found (the CPU backend is complete)")
endif()
