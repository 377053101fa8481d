# make install: program, libraries, header, pkg-config file, man page, completions.

install(TARGETS pdvm_shared LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${PDVM_STATIC_LIBRARY}" DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET pdvm)
  install(TARGETS pdvm RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
endif()
install(FILES "${PROJECT_SOURCE_DIR}/include/pdvm.h" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")

# The .pc file finds its prefix from its own place, so that a moved tree still works.
file(RELATIVE_PATH PDVM_PC_PREFIX
  "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" PDVM_PC_PREFIX "${PDVM_PC_PREFIX}")
file(RELATIVE_PATH PDVM_PC_LIBDIR "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_LIBDIR}")
file(RELATIVE_PATH PDVM_PC_INCLUDEDIR "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file("${PROJECT_SOURCE_DIR}/pdvm.pc.in" "${PROJECT_BINARY_DIR}/pdvm.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/pdvm.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(FILES "${PROJECT_SOURCE_DIR}/docs/man/pdvm.1" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1")
install(FILES "${PROJECT_SOURCE_DIR}/completions/pdvm.bash"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions" RENAME pdvm)
install(FILES "${PROJECT_SOURCE_DIR}/completions/_pdvm"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/site-functions")
install(FILES "${PROJECT_SOURCE_DIR}/completions/pdvm.fish"
  DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
