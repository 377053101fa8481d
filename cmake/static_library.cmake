# libpdvm.a, for users: as with the shared library, only what PDVM_API marks can be seen, so that no
# internal name can clash with one of the program that links it. For this all objects are joined into
# one, in which hidden symbols are made local. Sets PDVM_STATIC_LIBRARY to its path.

set(PDVM_STATIC_LIBRARY "${PROJECT_BINARY_DIR}/libpdvm.a")
set(joined "${PROJECT_BINARY_DIR}/pdvm_joined.o")

if(APPLE)
  # Here the linker itself makes hidden symbols local when it joins objects.
  set(localize "${CMAKE_COMMAND}" -E true)
else()
  set(localize "${CMAKE_OBJCOPY}" --localize-hidden "${joined}")
endif()

add_custom_command(OUTPUT "${PDVM_STATIC_LIBRARY}"
  COMMAND "${CMAKE_C_COMPILER}" -r -nostdlib -o "${joined}" "$<TARGET_OBJECTS:pdvm_objects>"
  COMMAND ${localize}
  COMMAND "${CMAKE_COMMAND}" -E rm -f "${PDVM_STATIC_LIBRARY}"
  COMMAND "${CMAKE_AR}" rcs "${PDVM_STATIC_LIBRARY}" "${joined}"
  DEPENDS pdvm_objects "$<TARGET_OBJECTS:pdvm_objects>"
  COMMAND_EXPAND_LISTS VERBATIM
  COMMENT "Linking C static library libpdvm.a")
add_custom_target(pdvm_static ALL DEPENDS "${PDVM_STATIC_LIBRARY}")
