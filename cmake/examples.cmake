# examples/*.c see the public header and the shared library only, as a user's program would. Each
# runs as a test with a model's path as its one argument; PDVM_EXAMPLE_ARGS_<name>, set here, gives
# an example other arguments.

if(EXISTS "${PROJECT_SOURCE_DIR}/models/tales/config.json")
  set(PDVM_EXAMPLE_MODEL "${PROJECT_SOURCE_DIR}/models/tales")
else()
  file(GLOB PDVM_EXAMPLE_MODEL CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/tests/golden/*/config.json")
  if(PDVM_EXAMPLE_MODEL)
    list(GET PDVM_EXAMPLE_MODEL 0 PDVM_EXAMPLE_MODEL)
    get_filename_component(PDVM_EXAMPLE_MODEL "${PDVM_EXAMPLE_MODEL}" DIRECTORY)
  endif()
endif()

file(GLOB PDVM_EXAMPLE_SOURCES CONFIGURE_DEPENDS "${PROJECT_SOURCE_DIR}/examples/*.c")
foreach(source IN LISTS PDVM_EXAMPLE_SOURCES)
  get_filename_component(name "${source}" NAME_WE)
  add_executable(example_${name} "${source}")
  set_target_properties(example_${name} PROPERTIES
    OUTPUT_NAME ${name} RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/examples")
  target_link_libraries(example_${name} PRIVATE pdvm_shared pdvm_compile_options)
  if(NOT DEFINED PDVM_EXAMPLE_ARGS_${name})
    set(PDVM_EXAMPLE_ARGS_${name} ${PDVM_EXAMPLE_MODEL})
  endif()
  if(PDVM_TESTS AND PDVM_EXAMPLE_ARGS_${name})
    add_test(NAME example_${name} COMMAND example_${name} ${PDVM_EXAMPLE_ARGS_${name}}
      WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}")
    set_tests_properties(example_${name} PROPERTIES LABELS example TIMEOUT ${PDVM_TEST_TIMEOUT}
      SKIP_RETURN_CODE 77)
  endif()
endforeach()
