# System packages. Sets PDVM_DEPENDENCIES, the link interface of the library.

find_package(PkgConfig)
if(NOT PkgConfig_FOUND)
  message(FATAL_ERROR "pkg-config was not found.\n"
    "Install it (Debian, Ubuntu: apt install pkg-config), or run scripts/setup.sh, "
    "which installs everything that a build needs.")
endif()

# pdvm_require(PREFIX MODULE APT_PACKAGE WHAT_FOR)
function(pdvm_require prefix module package purpose)
  pkg_check_modules(${prefix} QUIET IMPORTED_TARGET GLOBAL "${module}")
  if(NOT ${prefix}_FOUND)
    message(FATAL_ERROR "pkg-config knows no \"${module}\", which pdvm needs for ${purpose}.\n"
      "Install it (Debian, Ubuntu: apt install ${package}), or run scripts/setup.sh, "
      "which installs everything that a build needs.")
  endif()
endfunction()

pdvm_require(JANSSON "jansson>=2.12" libjansson-dev "reading and writing JSON")
pdvm_require(PCRE2 "libpcre2-8>=10.30" libpcre2-dev "the regular expressions of tokenizers")
pdvm_require(UTF8PROC "libutf8proc>=2.5" libutf8proc-dev "Unicode normalisation and widths")
pdvm_require(LIBEDIT "libedit>=3.1" libedit-dev "editing lines in 'pdvm chat'")
if(PDVM_TESTS)
  pdvm_require(CMOCKA "cmocka>=1.1.5" libcmocka-dev "its tests (or configure with -DPDVM_TESTS=OFF)")
endif()

set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

set(PDVM_DEPENDENCIES PkgConfig::JANSSON PkgConfig::PCRE2 PkgConfig::UTF8PROC
    Threads::Threads ${CMAKE_DL_LIBS} m)
