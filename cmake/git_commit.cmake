# Writes pdvm_build.h (PDVM_GIT_COMMIT) into PDVM_GENERATED_DIR. Only files that
# include it are compiled again when the commit changes; without git the commit is "unknown".

set(PDVM_GENERATED_DIR "${PROJECT_BINARY_DIR}/generated")
set(PDVM_GIT_COMMIT "unknown")

find_package(Git QUIET)
if(Git_FOUND)
  execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --show-prefix
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" RESULT_VARIABLE result
    OUTPUT_VARIABLE prefix OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  # A prefix means that some other repository holds this directory: its commit says nothing.
  if(result EQUAL 0 AND prefix STREQUAL "")
    execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --short=10 HEAD
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" RESULT_VARIABLE result
      OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(result EQUAL 0)
      set(PDVM_GIT_COMMIT "${commit}")
    endif()
    execute_process(COMMAND "${GIT_EXECUTABLE}" rev-parse --git-path logs/HEAD
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" RESULT_VARIABLE result
      OUTPUT_VARIABLE log OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    get_filename_component(log "${log}" ABSOLUTE BASE_DIR "${PROJECT_SOURCE_DIR}")
    if(result EQUAL 0 AND EXISTS "${log}")
      set_property(DIRECTORY "${PROJECT_SOURCE_DIR}" APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${log}")
    endif()
  endif()
endif()

configure_file("${CMAKE_CURRENT_LIST_DIR}/pdvm_build.h.in" "${PDVM_GENERATED_DIR}/pdvm_build.h" @ONLY)
